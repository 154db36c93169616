"""Key files: recipients' public and private keys, and files that hold a passphrase."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import typer

from vmcellar.config.secrets import read_secret_file
from vmcellar.crypto.recipient import PrivateKey, PublicKey
from vmcellar.errors import PermanentError, UsageError

IDENTITY_PASSPHRASE = "VMCELLAR_IDENTITY_PASSPHRASE"  # noqa: S105  (the name of a variable)


def read_public(path: Path) -> PublicKey:
    """The recipient in a public key's file."""
    return PublicKey.from_file(str(path), _read(path))


def read_private(path: Path) -> PrivateKey:
    """The private key in a file; its passphrase comes from the environment, else is asked on the terminal."""
    return PrivateKey.from_file(str(path), _read(path), _identity_passphrase(path))


def read_passphrase(path: Path) -> bytes:
    """The passphrase in a file, without newlines at its end; PermanentError when it is missing or empty."""
    with suppress(PermissionError):  # told below
        if not path.exists():
            raise PermanentError(f"passphrase file {path}: no such file", hint="write the passphrase into it first")
    passphrase = read_secret_file(path).rstrip(b"\r\n")
    if not passphrase:
        raise PermanentError(f"passphrase file {path} is empty", hint="put the passphrase into it")
    return passphrase


def write_new_key(path: Path, data: bytes, mode: int) -> None:
    """Write a key's file, durable; UsageError when there is a file already."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError as error:
        raise UsageError(f"{path} exists already; it was left as it is", hint="name another file") from error
    except OSError as error:
        raise PermanentError(f"{path}: {error.strerror}", hint="name a file in a folder that you may write") from error
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PermanentError(
            f"key file {path}: {error.strerror}", hint="`vmcellar key generate FILE` makes one"
        ) from error


def _identity_passphrase(path: Path) -> bytes:
    if IDENTITY_PASSPHRASE in os.environ:
        return os.environ[IDENTITY_PASSPHRASE].encode()
    if not sys.stdin.isatty():
        raise UsageError(
            f"{path} has a passphrase, and there is no terminal to ask on", hint=f"set ${IDENTITY_PASSPHRASE}"
        )
    return str(typer.prompt(f"Passphrase of {path}", hide_input=True, err=True)).encode()
