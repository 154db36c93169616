"""Sealed objects of their own: magic and version in clear, the rest sealed (docs/repository-format.md, section 8)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vmcellar.errors import IntegrityError
from vmcellar.repository.layout import ENVELOPE, FORMAT_VERSION

if TYPE_CHECKING:
    from vmcellar.crypto.base import Keyring

_BYTES = struct.calcsize(ENVELOPE)


def wrap(keyring: Keyring, magic: bytes, kind: bytes, name: bytes, plain: bytes) -> bytes:
    """The object's bytes; `kind` and `name` are bound to them."""
    return struct.pack(ENVELOPE, magic, FORMAT_VERSION) + keyring.seal_meta(kind, name, plain)


def unwrap(keyring: Keyring, magic: bytes, kind: bytes, name: bytes, data: bytes) -> bytes:
    """The plain bytes; IntegrityError when any bit of the object, or its name, is not what was written."""
    if data[: len(magic)] != magic or len(data) < _BYTES:
        raise IntegrityError("it does not begin as such an object does")
    version = struct.unpack_from(ENVELOPE, data)[1]
    if version != FORMAT_VERSION:
        raise IntegrityError(f"it is of format version {version}", hint="use a newer vmcellar")
    if data[:_BYTES] != struct.pack(ENVELOPE, magic, FORMAT_VERSION):
        raise IntegrityError("its header has bytes that must be zero")
    return keyring.open_meta(kind, name, data[_BYTES:])
