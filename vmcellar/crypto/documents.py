"""Key objects are JSON in one exact form with a checksum, so that damage is told apart from a wrong passphrase.

The checksum is no protection against a forger: what a slot protects is sealed, see slots.py and recipients.py.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256

from vmcellar.crypto.layout import CHECK_DIGITS, DOCUMENT_FORMAT
from vmcellar.errors import IntegrityError, PermanentError

_BYTES_MAX = 1 << 16
_HINT = "copy it again from another tier, or from where you keep it"

Fields = Mapping[str, str | int]


def encode(kind: str, fields: Fields) -> bytes:
    """The bytes of a document of this kind."""
    body = {"format": DOCUMENT_FORMAT, "kind": kind, **fields}
    return _text({**body, "check": _digest(body)})


def decode(name: str, data: bytes) -> tuple[str, dict[str, str | int]]:
    """(kind, fields); IntegrityError that names the object unless it is exactly what `encode` made."""
    try:
        if len(data) > _BYTES_MAX:
            raise ValueError("it is too long")
        document = json.loads(data)
        if not isinstance(document, dict) or not all(type(v) in (str, int) for v in document.values()):
            raise ValueError("it is not a flat object")
        body = {key: value for key, value in document.items() if key != "check"}
        if _text({**body, "check": _digest(body)}) != data:
            raise ValueError("the checksum differs")
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{name} is damaged: {error}", hint=_HINT) from error
    if body.pop("format", None) != DOCUMENT_FORMAT:
        raise PermanentError(f"{name} is of another format version", hint="use a newer vmcellar")
    return str(body.pop("kind", "")), body


def text(name: str, fields: Fields, key: str) -> str:
    """A field of text; IntegrityError when it is not there."""
    value = fields.get(key)
    if not isinstance(value, str):
        raise IntegrityError(f"{name}: the field {key} is missing", hint=_HINT)
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON may name half a character
        raise IntegrityError(f"{name}: the field {key} is no text", hint=_HINT) from error
    return value


def number(name: str, fields: Fields, key: str, most: int) -> int:
    """A field that is a whole number from 1 to `most`; IntegrityError otherwise."""
    value = fields.get(key)
    if not isinstance(value, int) or not 1 <= value <= most:
        raise IntegrityError(f"{name}: the field {key} is not a number from 1 to {most}", hint=_HINT)
    return value


def data_of(name: str, fields: Fields, key: str) -> bytes:
    """A field of base64; IntegrityError when it is none."""
    try:
        return b64decode(text(name, fields, key), validate=True)
    except ValueError as error:
        raise IntegrityError(f"{name}: the field {key} is not base64", hint=_HINT) from error


def now() -> str:
    """When a slot was made: UTC, RFC 3339."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def base64(data: bytes) -> str:
    """How a document holds bytes."""
    return b64encode(data).decode()


def _text(document: Fields) -> bytes:
    return json.dumps(document, indent=1).encode() + b"\n"


def _digest(body: Fields) -> str:
    return sha256(_text(body)).hexdigest()[:CHECK_DIGITS]
