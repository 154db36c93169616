"""`vmcellar init`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from vmcellar.cli.output import note
from vmcellar.cli.session import PANEL_START, ConfigOption
from vmcellar.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel=PANEL_START)(init)


def init(
    ctx: typer.Context,
    tier: Annotated[
        str | None,
        typer.Option(
            "--tier",
            metavar="hot=STORAGE",
            help="Where the repository is: a directory (made if need be), s3://BUCKET/PREFIX or ceph::POOL/NAMESPACE.",
        ),
    ] = None,
    passphrase_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file that holds the passphrase; only its name is kept.")
    ] = None,
    recipient: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A public key (`vmcellar key generate`): only its private key can read disks back. May be repeated.",
        ),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Write a commented vmcellar.yaml and create the repository with its keys.

    With both options nothing is asked; what is missing is asked on a terminal. An existing configuration is used as it
    is.
    """
    from vmcellar.cli.newrepository import create

    chosen = config or ctx.find_root().obj.config
    path = chosen or Path(os.environ.get("VMCELLAR_CONFIG") or "vmcellar.yaml")
    if path.is_dir():
        from vmcellar.config.load import folder_error

        raise folder_error(path, "--config" if chosen else "$VMCELLAR_CONFIG")
    if path.exists():
        _refuse_options_for_existing(path, tier, passphrase_file)
        made = create(path.absolute(), None, recipient or [])
    else:
        made = create(path.absolute(), _answers(tier, passphrase_file, path.absolute().parent), recipient or [])
    sys.stdout.write(f"{made.config}: configuration\n{made.storage}: repository {made.repository_id}\n")
    what = "every recipient's private key" if recipient else "the passphrase"
    note(f"keep a copy of {what} away from this host: without it nothing can be restored")
    note("next: vmcellar doctor, then vmcellar backup VM")


def _refuse_options_for_existing(path: Path, tier: str | None, passphrase_file: Path | None) -> None:
    if tier is not None or passphrase_file is not None:
        raise UsageError(
            f"{path} exists already; it was left as it is",
            hint="edit it and type `vmcellar init` without options, or name another file with --config FILE",
        )


def _answers(tier: str | None, passphrase_file: Path | None, folder: Path) -> tuple[str, Path]:
    """The hot tier's storage and the passphrase file, from the options, else asked on the terminal."""
    if tier is not None:
        storage = _storage(_tier_storage(tier), f"--tier {tier}")
    else:
        storage = _storage(_ask("Directory of the repository", "--tier hot=DIR"), "the repository's place")
    if passphrase_file is None:
        passphrase_file = _ask_passphrase(folder)
    return storage, passphrase_file.absolute()


def _tier_storage(text: str) -> str:
    name, equals, storage = text.partition("=")
    if not equals or not storage:
        raise UsageError(f"--tier {text}: a tier is written NAME=STORAGE", hint="such as --tier hot=/srv/vmcellar")
    if name in ("warm", "cold"):
        raise UsageError(
            f"--tier {text}: init makes the tier hot, and the others with it where an existing configuration names "
            "them",
            hint=f"make hot first; then write `{name}: {storage}` under tiers: in the file, and type "
            f"`vmcellar tiers add {name}`",
        )
    if name != "hot":
        raise UsageError(f"--tier {text}: there is no tier {name}", hint=f"write --tier hot={storage}")
    return storage


def _storage(text: str, said: str) -> str:
    """A storage string as the configuration has it; UsageError by the configuration's own check, before any folder is
    made of it.
    """
    from pydantic import ValidationError

    from vmcellar.config.tiers import TierSettings

    try:
        settings = TierSettings.model_validate(text)
    except ValidationError as error:
        why = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"{said}: {why}", hint="nothing was made") from error
    return str(settings.directory.absolute()) if settings.kind == "local" else settings.storage


def _ask(question: str, option: str) -> str:
    if not sys.stdin.isatty():
        raise UsageError(f"{option} is missing, and there is no terminal to ask on", hint=f"add {option}")
    return str(typer.prompt(question, err=True))


def _ask_passphrase(folder: Path) -> Path:
    """A file with a passphrase: an existing one, or a new one of the words that are typed twice."""
    name = _ask("File that holds the passphrase, or is to hold it", "--passphrase-file FILE")
    path = folder / Path(name).expanduser()
    if path.exists():
        return path
    passphrase = str(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True))
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(passphrase + "\n")
        file.flush()
        os.fsync(file.fileno())
    return path
