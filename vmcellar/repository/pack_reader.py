"""Reads packs from a tier: the table of contents from the pack alone, objects in coalesced ranges, always checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from vmcellar.crypto.layout import SEAL_OVERHEAD
from vmcellar.errors import IntegrityError
from vmcellar.memory import HUGE_PAGE, PAGE, BufferPool
from vmcellar.progress import CancelToken, ProgressSink, no_progress
from vmcellar.repository import codec, layout, pack_format
from vmcellar.repository.layout import HEADER_BYTES, TRAILER_BYTES
from vmcellar.repository.pack_format import ObjectCipher, PackRef, Table, Trailer
from vmcellar.tiers.base import Tier, TierReader

if TYPE_CHECKING:
    from vmcellar.crypto.base import Keyring, PackCipher

READ_MAX = 4 << 20
"""Objects that lie close are read together, up to this many bytes."""
_GAP_MAX = 64 << 10  # bytes between two objects that are read rather than skipped
_buffers = BufferPool(READ_MAX + HUGE_PAGE, huge=True)
_chunks = BufferPool(2 * layout.CHUNK_MAX, huge=True)
"""Each holds a chunk plain, then the same as it was compressed."""


class Location(NamedTuple):
    """Where one object lies: in which pack, as which object of it, at which bytes."""

    pack: PackRef
    chunk: bytes
    ordinal: int
    offset: int
    stored: int
    length: int
    method: int
    what: int


@dataclass(frozen=True, slots=True)
class Group:
    """Objects of one pack that one read fetches; `start` and `end` are multiples of 4096 where the pack allows."""

    start: int
    end: int
    objects: tuple[Location, ...]


class PackReader:
    """One pack on a tier. Any thread; close it after use."""

    def __init__(self, tier: Tier, key: str, keyring: Keyring, *, pack: PackRef | None = None) -> None:
        """Open the pack; NotFoundError when it is missing. `pack` spares reading the header, if known."""
        self.key = key
        self._tier = tier
        self._keyring = keyring
        self._reader: TierReader = tier.open(key)
        self._known = pack

    def __enter__(self) -> PackReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the pack; harmless twice."""
        self._reader.close()

    @cached_property
    def pack(self) -> PackRef:
        """What the header says the pack is; IntegrityError when that is not what lies under this key."""
        if self._known is not None:
            return self._known
        size = self._reader.size
        with naming(self.key):
            if size < HEADER_BYTES + TRAILER_BYTES or size % layout.PACK_BLOCK:
                raise IntegrityError(f"{size} bytes cannot be a whole pack: it is cut short")
            found = pack_format.parse_header(self._bytes(0, HEADER_BYTES), size)
            if found.key != self.key:
                raise IntegrityError(f"the header is that of {found.key}")
        return found

    @cached_property
    def _cipher(self) -> ObjectCipher:
        return pack_format.cipher_of(self._keyring, self.pack)

    @cached_property
    def _data_cipher(self) -> PackCipher:
        return self._keyring.pack_cipher(self.pack.epoch, self.pack.id)

    @cached_property
    def trailer(self) -> Trailer:
        """Where the table of contents lies; IntegrityError when the trailer is damaged."""
        with naming(self.key):
            data = self._bytes(self.pack.size - TRAILER_BYTES, TRAILER_BYTES)
            return pack_format.parse_trailer(self.pack, data)

    def toc(self) -> Table:
        """The TOC_ROWs of all objects, in the order they lie; a row's index is its ordinal."""
        found = self.trailer
        with naming(self.key):
            sealed = self._bytes(found.toc_offset, found.toc_length)
            return pack_format.open_toc(self._keyring, self.pack, found, sealed)

    def locations(self) -> list[Location]:
        """All objects, as the index would tell them."""
        return table_locations(self.pack, self.toc())

    def read(self, found: Location) -> bytes:
        """One object's plain bytes, checked against its id."""
        return self.open_object(found, self._bytes(found.offset, found.stored))

    def read_group(self, group: Group) -> Iterator[tuple[Location, bytes]]:
        """The plain bytes of all objects of a group, each checked, with one read."""
        for found, _, plain in self._open_group(group):
            yield found, plain

    def read_group_packed(self, group: Group) -> Iterator[tuple[Location, bytes]]:
        """As `read_group`, and checked as there, but the bytes as they were compressed: for moving them."""
        for found, packed, _ in self._open_group(group):
            yield found, packed

    def lend_group(self, group: Group) -> Iterator[tuple[Location, memoryview]]:
        """As `read_group`, and checked as there, but in memory that is used again for the next object.

        A chunk begins on a page, as direct I/O asks. Nothing of its size is allocated or copied on the way.
        """
        with _chunks.buffer() as buffer:
            plain, packed = buffer[: layout.CHUNK_MAX], buffer[layout.CHUNK_MAX :]
            for found, sealed in self._sealed(group):
                yield found, self._open_into(found, sealed, packed, plain)

    def _open_group(self, group: Group) -> Iterator[tuple[Location, bytes, bytes]]:
        for found, sealed in self._sealed(group):
            yield found, *self._open(found, sealed)

    def _sealed(self, group: Group) -> Iterator[tuple[Location, memoryview]]:
        """What lies in the pack, until the next is asked for."""
        with _buffers.buffer() as buffer:
            view = buffer[: group.end - group.start]
            self._reader.read_into(group.start, view)
            for found in group.objects:
                place = found.offset - group.start
                yield found, view[place : place + found.stored]

    def open_object(self, found: Location, sealed: bytes | memoryview) -> bytes:
        """Decrypt, decompress, compare the id; IntegrityError that names pack and chunk."""
        return self._open(found, sealed)[1]

    def _open(self, found: Location, sealed: bytes | memoryview) -> tuple[bytes, bytes]:
        """The object compressed as it was, and plain."""
        with self._naming_object(found):
            packed = self._cipher.open(found.ordinal, sealed)
            plain = codec.decode(found.method, packed, found.length)
            self._check(found, plain)
        return packed, plain

    def _open_into(self, found: Location, sealed: memoryview, packed: memoryview, plain: memoryview) -> memoryview:
        """The object in the beginning of `plain`; `packed` holds it compressed meanwhile."""
        if self.pack.kind != layout.KIND_DATA or found.length > layout.CHUNK_MAX:
            return memoryview(self._open(found, sealed)[1])
        cipher = self._data_cipher
        length = max(found.stored - SEAL_OVERHEAD, 0)
        out = plain[: found.length]
        with self._naming_object(found):
            if found.method == layout.METHOD_ZSTD:
                cipher.open_into(found.ordinal, sealed, packed[:length])
                codec.decompress_into(packed[:length], out)
            else:
                codec.check_raw(found.method, length, found.length)
                cipher.open_into(found.ordinal, sealed, out)
            self._check(found, out)
        return out

    def _check(self, found: Location, plain: bytes | memoryview) -> None:
        if pack_format.content_id(self._keyring, found.what, plain) != found.chunk:
            raise IntegrityError("its content is not what was stored")

    @contextmanager
    def _naming_object(self, found: Location) -> Iterator[None]:
        """Prefix IntegrityErrors of the block with pack and object."""
        try:
            yield
        except IntegrityError as error:
            raise IntegrityError(
                f"pack {self.key}: object {found.ordinal}, id {found.chunk.hex()}: {error.message}",
                hint="type `vmcellar verify --all --deep` to see which points it touches; the next backup heals it",
            ) from error

    def check_padding(self) -> None:
        """IntegrityError unless the bytes between table of contents and trailer are zero."""
        end = self.trailer.toc_offset + self.trailer.toc_length
        if any(self._bytes(end, self.pack.size - TRAILER_BYTES - end)):
            with naming(self.key):
                raise IntegrityError("the padding before the trailer is not zero")

    def _bytes(self, offset: int, length: int) -> bytes:
        """Bytes from anywhere, read in whole blocks around them so that they come from the device."""
        start = offset // PAGE * PAGE
        end = min(-(-(offset + length) // PAGE) * PAGE, self._reader.size)
        with _buffers.buffer() as buffer:
            view = buffer[: end - start]
            self._reader.read_into(start, view)
            return bytes(view[offset - start : offset - start + length])


def table_locations(pack: PackRef, rows: Table) -> list[Location]:
    """The rows of a pack's table of contents as locations."""
    columns = (rows[name].tolist() for name in ("offset", "stored", "length", "method", "what"))
    ids = rows["chunk"].tobytes()
    chunks = (ids[i : i + layout.ID_BYTES] for i in range(0, len(ids), layout.ID_BYTES))
    return [Location(pack, chunk, *rest) for chunk, *rest in zip(chunks, range(len(rows)), *columns, strict=True)]


def groups(objects: Sequence[Location]) -> Iterator[Group]:
    """Cut `objects`, sorted by pack and offset, into what single reads fetch."""
    pending: list[Location] = []
    for found in objects:
        if pending and not _joins(pending, found):
            yield _group(pending)
            pending = []
        pending.append(found)
    if pending:
        yield _group(pending)


def _joins(pending: list[Location], found: Location) -> bool:
    first, last = pending[0], pending[-1]
    gap = found.offset - last.offset - last.stored
    length = found.offset + found.stored - first.offset // PAGE * PAGE
    return found.pack == first.pack and gap <= _GAP_MAX and length <= READ_MAX


def _group(objects: list[Location]) -> Group:
    last = objects[-1]
    start = objects[0].offset // PAGE * PAGE
    end = -(-(last.offset + last.stored) // PAGE) * PAGE
    return Group(start, min(end, last.pack.size), tuple(objects))


def verify_pack(
    tier: Tier,
    key: str,
    keyring: Keyring,
    pool: Executor,
    progress: ProgressSink = no_progress,
    cancel: CancelToken | None = None,
) -> int:
    """Read a whole pack back from the tier and check every byte of it; how many objects it has.

    Objects are decoded on `pool`; call it from a thread that is not of the pool. IntegrityError names the first damaged
    object. Reports plain bytes as stage "verify".
    """
    cancel = cancel or CancelToken()
    with PackReader(tier, key, keyring) as reader:
        found = reader.locations()
        reader.check_padding()
        futures = [pool.submit(_check_group, reader, group, progress, cancel) for group in groups(found)]
        _wait_all(futures)
    return len(found)


def _check_group(reader: PackReader, group: Group, progress: ProgressSink, cancel: CancelToken) -> None:
    cancel.check()
    for found, _ in reader.read_group(group):
        progress("verify", found.length)


def _wait_all(futures: Sequence[Future[None]]) -> None:
    """Wait until none runs any more, then raise the first error: the reader is closed after this."""
    errors = [future.exception() for future in futures]
    for error in errors:
        if error is not None:
            raise error


class naming:  # noqa: N801  (used like a function)
    """Prefix IntegrityErrors of the block with the pack they are about."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, IntegrityError):
            raise IntegrityError(f"pack {self._key}: {error.message}", hint=error.hint) from error
