"""Keys on paper: numbered lines of base32, each with its own checksum, so that a mistyped line is named.

Whoever has the sheet has the repository, without any passphrase: it belongs into a safe.
"""

from __future__ import annotations

import re
from base64 import b32decode, b32encode
from hashlib import sha256

from vmcellar.crypto.recipient import PrivateKey
from vmcellar.crypto.secrets import Secrets
from vmcellar.errors import IntegrityError, UsageError

_LINE_BYTES = 20
_CHECK = 4  # characters of a line's checksum
_DIGEST = 8  # bytes of the whole sheet's
_SECRETS, _PRIVATE = b"S", b"P"
_NUMBERED = re.compile(r"\s*(\d{1,3})[.:]?\s+([A-Za-z0-9\s=]+)")
_LOOKALIKES = str.maketrans("018", "OIB")  # digits that base32 does not have


def export(key: Secrets | PrivateKey, title: str) -> str:
    """The text to print. `title` says what it is of; it is not read back."""
    kind, data = (_SECRETS, key.to_bytes()) if isinstance(key, Secrets) else (_PRIVATE, key.raw)
    body = kind + data
    body += sha256(body).digest()[:_DIGEST]
    pieces = [body[i : i + _LINE_BYTES] for i in range(0, len(body), _LINE_BYTES)]
    head = [
        "vmcellar key on paper, version 1",
        f"# {title}",
        "# Keep it locked away: it opens the repository without a passphrase.",
    ]
    return "\n".join([*head, *(_line(number, piece) for number, piece in enumerate(pieces, start=1)), ""])


def parse(text: str) -> Secrets | PrivateKey:
    """The key from typed lines; UsageError names the line that is wrong, missing or out of order."""
    body = b""
    for number, (shown, letters) in enumerate(_numbered(text), start=1):
        if shown != number:
            raise UsageError(f"line {number} of the paper key is missing", hint="type all lines, in their order")
        body += _read_line(number, letters)
    data, digest = body[:-_DIGEST], body[-_DIGEST:]
    if len(body) <= _DIGEST + 1 or sha256(data).digest()[:_DIGEST] != digest:
        raise UsageError("the last lines of the paper key are missing", hint="type all lines, in their order")
    return _key(data[:1], data[1:])


def _key(kind: bytes, data: bytes) -> Secrets | PrivateKey:
    if kind == _SECRETS:
        return Secrets.from_bytes(data)
    if kind == _PRIVATE:
        return PrivateKey.from_bytes("the paper key", data)
    raise IntegrityError("the paper key is of an unknown kind", hint="use a newer vmcellar")


def _numbered(text: str) -> list[tuple[int, str]]:
    found = (_NUMBERED.fullmatch(line) for line in text.splitlines())
    return [(int(match[1]), match[2]) for match in found if match]


def _line(number: int, piece: bytes) -> str:
    letters = _base32(piece)
    groups = [letters[i : i + 4] for i in range(0, len(letters), 4)]
    return f"{number:2}  {' '.join(groups)}  {_check(number, piece)}"


def _read_line(number: int, letters: str) -> bytes:
    plain = re.sub(r"[\s=]", "", letters).upper().translate(_LOOKALIKES)
    data, check = plain[:-_CHECK], plain[-_CHECK:]
    try:
        piece = b32decode(data + "=" * (-len(data) % 8))
    except ValueError:
        piece = b""
    if not piece or _check(number, piece) != check or _base32(piece) != data:
        raise UsageError(
            f"line {number} of the paper key is mistyped", hint="compare it with the sheet, letter by letter"
        )
    return piece


def _base32(data: bytes) -> str:
    return b32encode(data).decode().rstrip("=")


def _check(number: int, piece: bytes) -> str:
    return _base32(sha256(b"vmcellar paper 1 %d " % number + piece).digest())[:_CHECK]
