"""tar's exclude patterns that leave one name of a folder alone: libguestfs's tar takes a folder and such patterns.

Their number grows with the name's length, not with the folder. Source: "Wildcards and Matching" of GNU tar's manual,
and its reading of pattern files: a line each, with blanks at the end cut off.
"""

from __future__ import annotations

_SPECIAL = rb"\*?["
_ANY_BUT_NEWLINE = b"[\x01-\x09\x0b-\xff]"
_NEWLINE = b"[!\x01-\x09\x0b-\xff]"


def all_but(name: bytes) -> tuple[bytes, ...]:
    """Anchored patterns that match "./" with every other name than `name`, and whatever lies below those."""
    same = [_same(byte) for byte in _bytes(name)]
    patterns = []
    for number, byte in enumerate(_bytes(name)):
        before = b"./" + b"".join(same[:number])
        if number:
            patterns.append(before)
        patterns.append(before + _other(byte) + b"*")
    return (*patterns, b"./" + b"".join(same) + b"?*")


def _bytes(name: bytes) -> list[bytes]:
    return [name[number : number + 1] for number in range(len(name))]


def _same(byte: bytes) -> bytes:
    if byte == b"\n":
        return _NEWLINE
    if byte.isspace():
        return b"[" + byte + b"]"
    return b"\\" + byte if byte in _SPECIAL else byte


def _other(byte: bytes) -> bytes:
    if byte == b"\n":
        return _ANY_BUT_NEWLINE
    return b"[!\\\\]" if byte == b"\\" else b"[!" + byte + b"]"
