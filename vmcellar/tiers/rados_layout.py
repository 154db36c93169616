"""How an object of a tier lies in a RADOS pool.

In the tier's namespace, under the object's key, its head: HEAD_BYTES of header, then the object itself if it fits in
one RADOS object. A larger one is cut into parts in the namespace `<namespace>.parts`, named `<key>.<upload>.<number>`
with the number in hex from 0; its head is written last and alone makes it visible. All numbers are little-endian.

    0  8   b"VMCRADOS"
    8  2   version, 1
    10 2   1 if the bytes follow in the head, 0 if they are in parts
    12 4   bytes per part (the last one may be shorter)
    16 8   bytes of the object
    24 16  upload: random, of the call that wrote it
    40 24  of an adopted file the first bytes of its BLAKE3, else zero
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from vmcellar.errors import IntegrityError

HEAD_BYTES = 64
MARK_BYTES = 24
VERSION = 1
_MAGIC = b"VMCRADOS"
_HEADER = struct.Struct("<8sHHIQ16s24s")


@dataclass(frozen=True, slots=True)
class Head:
    """What a head says. Sizes in bytes."""

    size: int
    upload: bytes
    part: int
    inline: bool
    mark: bytes = bytes(MARK_BYTES)

    def encode(self) -> bytes:
        """The header."""
        return _HEADER.pack(_MAGIC, VERSION, self.inline, self.part, self.size, self.upload, self.mark)

    def is_of(self, other: Head) -> bool:
        """Whether both were written by one call, or by two calls from one file."""
        same_file = any(self.mark) and (self.mark, self.size) == (other.mark, other.size)
        return self.upload == other.upload or same_file

    def names(self, key: str) -> list[str]:
        """Its parts, in order; none if the bytes are in the head."""
        count = 0 if self.inline else -(-self.size // self.part)
        return [part_name(key, self.upload, number) for number in range(count)]

    def pieces(self, key: str, offset: int, length: int) -> Iterator[tuple[str, int, int]]:
        """(RADOS object, offset in it, bytes) for a range of the object; `""` is the head."""
        if self.inline:
            yield "", HEAD_BYTES + offset, length
            return
        end = offset + length
        while offset < end:
            number, start = divmod(offset, self.part)
            count = min(self.part - start, end - offset)
            yield part_name(key, self.upload, number), start, count
            offset += count


def part_name(key: str, upload: bytes, number: int) -> str:
    """The name of a part."""
    return f"{key}.{upload.hex()}.{number:x}"


def upload_of(name: str) -> tuple[str, bytes]:
    """(key, upload) of a part's name; ValueError when it is none."""
    key, upload, number = name.rsplit(".", 2)
    int(number, 16)
    return key, bytes.fromhex(upload)


def decode(data: bytes, what: str) -> Head:
    """The head that begins with `data`; IntegrityError that names `what` when it is none."""
    if len(data) < HEAD_BYTES:
        raise IntegrityError(
            f"{what}: its head is cut short", hint="type `vmcellar verify --all` to see what it touches"
        )
    magic, version, inline, part, size, upload, mark = _HEADER.unpack(data[:HEAD_BYTES])
    if magic != _MAGIC or version != VERSION or not part:
        raise IntegrityError(
            f"{what}: its head is not one of vmcellar's", hint="find out what wrote there; nothing was changed"
        )
    return Head(size, upload, part, bool(inline), mark)
