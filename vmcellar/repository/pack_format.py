"""A pack's header, table of contents and trailer (docs/repository-format.md, section 5), and who seals its objects.

A pack is: header, sealed objects one after the other, sealed table of contents, zero bytes up to a multiple of 4096
with the trailer as its last 64 bytes. Every byte of it is covered by a check.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from blake3 import blake3

from vmcellar.errors import IntegrityError
from vmcellar.repository import layout
from vmcellar.repository.layout import HEADER_BYTES, PACK_BLOCK, TRAILER_BYTES, pack_key

if TYPE_CHECKING:
    from vmcellar.crypto.base import Keyring

Table = np.ndarray[tuple[int], np.dtype[np.void]]
"""An array of TOC_ROW."""


@dataclass(frozen=True, slots=True)
class PackRef:
    """Which pack, of which kind, under which epoch key (zero for metadata), and its length in bytes."""

    id: bytes
    kind: int
    epoch: bytes
    size: int

    @property
    def key(self) -> str:
        """Its key on a tier."""
        return pack_key(self.kind, self.id)


@dataclass(frozen=True, slots=True)
class Trailer:
    """Where the table of contents lies, and how many rows it has."""

    toc_offset: int
    toc_length: int
    rows: int


class ObjectCipher(Protocol):
    """Seals and opens the objects of one pack by their ordinal. Any thread."""

    def seal(self, ordinal: int, plain: bytes | memoryview) -> bytes:
        """The sealed form; an ordinal is never sealed twice."""
        ...

    def seal_into(self, ordinal: int, plain: bytes | memoryview, out: memoryview) -> None:
        """As `seal`, into `out` of exactly that length."""
        ...

    def open(self, ordinal: int, sealed: bytes | memoryview) -> bytes:
        """The plain form; IntegrityError when it is not what was sealed under this ordinal of this pack."""
        ...


class MetaCipher:
    """Objects of metadata packs, sealed one by one under the metadata key (section 3)."""

    def __init__(self, keyring: Keyring, pack_id: bytes) -> None:
        self._keyring = keyring
        self._pack_id = pack_id

    def _name(self, ordinal: int) -> bytes:
        return self._pack_id + ordinal.to_bytes(4, "little")

    def seal(self, ordinal: int, plain: bytes | memoryview) -> bytes:
        """See ObjectCipher."""
        return self._keyring.seal_meta(layout.OBJECT_SEAL, self._name(ordinal), plain)

    def seal_into(self, ordinal: int, plain: bytes | memoryview, out: memoryview) -> None:
        """See ObjectCipher."""
        out[:] = self.seal(ordinal, plain)

    def open(self, ordinal: int, sealed: bytes | memoryview) -> bytes:
        """See ObjectCipher."""
        return self._keyring.open_meta(layout.OBJECT_SEAL, self._name(ordinal), sealed)


def cipher_of(keyring: Keyring, pack: PackRef) -> ObjectCipher:
    """The cipher for a pack's objects: metadata key for metadata, a key of its own under an epoch for data."""
    if pack.kind == layout.KIND_META:
        return MetaCipher(keyring, pack.id)
    return keyring.pack_cipher(pack.epoch, pack.id)


def content_id(keyring: Keyring, what: int, plain: bytes | memoryview) -> bytes:
    """The id that an object's bytes must have."""
    return keyring.node_id(plain) if what == layout.WHAT_NODE else keyring.chunk_id(plain)


def header(pack: PackRef) -> bytes:
    """The first 64 bytes."""
    return struct.pack(layout.HEADER, layout.PACK_MAGIC, layout.FORMAT_VERSION, pack.kind, pack.id, pack.epoch)


def parse_header(data: bytes, size: int) -> PackRef:
    """The pack that begins with `data`; IntegrityError when no byte string of this version begins so."""
    try:
        magic, version, kind, pack_id, epoch = struct.unpack(layout.HEADER, data)
    except struct.error as error:
        raise IntegrityError("the header is cut short") from error
    found = PackRef(pack_id, kind, epoch, size)
    if magic != layout.PACK_MAGIC or kind not in (layout.KIND_DATA, layout.KIND_META):
        raise IntegrityError("the header is not a pack's")
    if version != layout.FORMAT_VERSION:
        raise IntegrityError(f"the pack is of format version {version}", hint="use a newer vmcellar")
    if header(found) != data:
        raise IntegrityError("the header has bytes that must be zero")
    return found


def trailer(pack: PackRef, found: Trailer) -> bytes:
    """The last 64 bytes."""
    body = struct.pack(layout.TRAILER, layout.TRAILER_MAGIC, found.toc_offset, found.toc_length, found.rows, pack.id)
    return body + blake3(body).digest(layout.TRAILER_DIGEST_BYTES)


def parse_trailer(pack: PackRef, data: bytes) -> Trailer:
    """The trailer of `pack`; IntegrityError when it is not whole, or of another pack, or points outside."""
    try:
        _, offset, length, rows, _ = struct.unpack_from(layout.TRAILER, data)
    except struct.error as error:
        raise IntegrityError("the trailer is cut short") from error
    found = Trailer(offset, length, rows)
    if trailer(pack, found) != data:
        raise IntegrityError("the trailer is damaged or of another pack")
    if rows > layout.PACK_ROWS_MAX or length > layout.TOC_BYTES_MAX:
        raise IntegrityError("the trailer tells of more objects than a pack can have")
    if packed_size(offset + length) != pack.size or offset < HEADER_BYTES:
        raise IntegrityError("the trailer does not fit the pack's length")
    return found


def packed_size(end_of_toc: int) -> int:
    """The whole length of a pack whose table of contents ends there."""
    return -(-(end_of_toc + TRAILER_BYTES) // PACK_BLOCK) * PACK_BLOCK


def seal_toc(keyring: Keyring, pack: PackRef, rows: Table) -> bytes:
    """The sealed table of contents: the header again, then the rows."""
    return keyring.seal_meta(layout.TOC_SEAL, pack.id, header(pack) + rows.tobytes())


def open_toc(keyring: Keyring, pack: PackRef, found: Trailer, sealed: bytes) -> Table:
    """The rows of a sealed table of contents, checked to tile the pack; IntegrityError otherwise."""
    plain = keyring.open_meta(layout.TOC_SEAL, pack.id, sealed)
    if plain[:HEADER_BYTES] != header(pack):
        raise IntegrityError("the table of contents belongs to another header")
    if len(plain) != HEADER_BYTES + found.rows * layout.TOC_ROW.itemsize:
        raise IntegrityError("the table of contents does not have the rows that the trailer tells")
    rows = np.frombuffer(plain, layout.TOC_ROW, offset=HEADER_BYTES)
    ends = rows["offset"].astype(np.int64) + rows["stored"]
    starts = np.concatenate([[HEADER_BYTES], ends[:-1]]) if len(rows) else ends
    if np.any(rows["offset"] != starts) or (int(ends[-1]) if len(rows) else HEADER_BYTES) != found.toc_offset:
        raise IntegrityError("the objects of the table of contents do not lie one after the other")
    if np.any(rows["zero"]) or np.any(rows["length"] > layout.CHUNK_MAX):
        raise IntegrityError("the table of contents has rows that no writer makes")
    return rows
