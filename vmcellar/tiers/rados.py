"""A namespace of a Ceph pool as a tier. How objects lie there: rados_layout.py."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

from blake3 import blake3

from vmcellar.config.tiers import TierSettings
from vmcellar.errors import IntegrityError
from vmcellar.tiers import local_errors
from vmcellar.tiers.base import ExistsError, NotFoundError, check_key, exists_error, too_short
from vmcellar.tiers.rados_layout import HEAD_BYTES, MARK_BYTES, Head, decode, part_name, upload_of
from vmcellar.tiers.rados_pool import Pool
from vmcellar.tiers.retry import Patience

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Source:
    """What is to be stored: `read` gives so many bytes from an offset, fewer at the end."""

    size: int
    read: Callable[[int, int], bytes]
    from_file: bool = False

    def pieces(self, length: int) -> Iterator[bytes]:
        """All of it, in order."""
        for start in range(0, self.size, length):
            yield self.read(start, length)

    def as_mark(self, digest: blake3) -> bytes:
        """What the head keeps of the digest of all pieces: of a file alone."""
        return digest.digest(length=MARK_BYTES) if self.from_file else bytes(MARK_BYTES)

    def mark(self, length: int) -> bytes:
        """The same, read now."""
        digest = blake3()
        for piece in self.pieces(length):
            digest.update(piece)
        return self.as_mark(digest)


def _read_file(number: int, start: int, length: int) -> bytes:
    """So many bytes of an open file; OSError when it ended early, as it is written no more."""
    data = os.pread(number, length, start)
    left = min(length, os.fstat(number).st_size - start) - len(data)
    while left > 0:
        more = os.pread(number, left, start + len(data))
        if not more:
            raise OSError(errno.EIO, "the file got shorter")
        data, left = data + more, left - len(more)
    return data


class RadosTier:
    """A tier in `ceph::pool/namespace`. The pool must exist."""

    kind = "ceph"

    def __init__(
        self, settings: TierSettings, *, name: str = "hot", staging: Path, patience: Patience | None = None
    ) -> None:
        """Connect; see Pool for errors."""
        self.name = name
        self._storage = settings.storage
        self._part = settings.object
        self._staging = staging
        self._patience = patience or Patience(attempts=3)
        self._pool = self._patience(lambda: Pool(settings, repr(self)))

    def __repr__(self) -> str:
        return f"tier {self.name} ({self._storage})"

    def _ask(self, call: Callable[[], T]) -> T:
        """With retries. An object that is missing because its pool is gone says so."""
        try:
            return self._patience(call)
        except NotFoundError:
            self._pool.check_pool()
            raise

    def staging_dir(self) -> Path:
        """A folder of this host; `adopt` writes from anywhere at the same cost."""
        try:
            self._staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise local_errors.translate(error, f"{self!r}: staging folder {self._staging}") from error
        return self._staging

    def put(self, key: str, data: bytes) -> None:
        """See Tier.put."""
        self._store(check_key(key), _Source(len(data), lambda start, count: data[start : start + count]))

    def adopt(self, path: Path, key: str) -> None:
        """See Tier.adopt. The head keeps the file's digest, by which a repetition knows it. The file is read and
        digested part by part while the parts before are on their way.
        """
        check_key(key)
        try:
            with path.open("rb", buffering=0) as file:
                number = file.fileno()
                read = partial(_read_file, number)
                self._store(key, _Source(os.fstat(number).st_size, read, from_file=True))
        except OSError as error:
            raise local_errors.translate(error, f"{self!r}: {key} from {path}") from error
        path.unlink()

    def _store(self, key: str, source: _Source) -> None:
        inline = HEAD_BYTES + source.size <= self._part
        head = Head(source.size, uuid4().bytes, self._part, inline)
        if self.exists(key):
            self._is_ours(key, replace(head, mark=source.mark(self._part)))
            return
        body = source.read(0, source.size) if inline else b""
        mark = source.mark(self._part) if inline else self._ask(lambda: self._write_parts(key, source, head))
        head = replace(head, mark=mark)
        try:
            self._ask(lambda: self._pool.write_new(key, head.encode() + body, key))
        except ExistsError:
            if not self._in_use(key, head.upload):
                self._drop_parts(key, head)
            if not self._is_ours(key, head):
                raise

    def _write_parts(self, key: str, source: _Source, head: Head) -> bytes:
        """Write all parts; the mark of what was written."""
        digest = blake3()

        def begin() -> Iterator[Callable[[], Any]]:
            for number, piece in enumerate(source.pieces(head.part)):
                digest.update(piece)
                yield partial(self._pool.parts.aio_write_full, part_name(key, head.upload, number), piece)

        self._pool.run(key, begin())
        return source.as_mark(digest)

    def _is_ours(self, key: str, head: Head) -> bool:
        """Whether the object is there and our own; ExistsError when it is another's."""
        try:
            found = self._head(key)
        except NotFoundError:
            return False
        if not found.is_of(head):
            raise exists_error(self, key)
        return True

    def _head(self, key: str) -> Head:
        check_key(key)
        data = self._ask(lambda: self._pool.read(self._pool.heads, key, 0, HEAD_BYTES, key))
        return decode(data, f"{self!r}: {key}")

    def get(self, key: str) -> bytes:
        """See Tier.get."""
        with self.open(key) as reader:
            return self._bytes(reader, 0, reader.size)

    def read(self, key: str, offset: int, length: int) -> bytes:
        """See Tier.read."""
        with self.open(key) as reader:
            return self._bytes(reader, offset, length)

    @staticmethod
    def _bytes(reader: RadosReader, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        reader.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def open(self, key: str) -> RadosReader:
        """See Tier.open."""
        return RadosReader(self, key, self._head(key))

    def fill(self, key: str, head: Head, offset: int, buffer: memoryview) -> None:
        """Read a range of an object, its parts at once; IntegrityError when a part is missing or short."""
        pieces = list(head.pieces(key, offset, len(buffer)))
        arrived: dict[int, bytes] = {}
        begin = (
            partial(
                self._pool.read_later,
                self._pool.parts if name else self._pool.heads,
                name or key,
                start,
                count,
                arrived,
                slot,
            )
            for slot, (name, start, count) in enumerate(pieces)
        )
        try:
            self._pool.run(key, begin)
        except NotFoundError as error:
            raise IntegrityError(
                f"{self!r}: {key}: one of its parts is missing: it is cut short",
                hint="type `vmcellar verify --all` to see which points it touches",
            ) from error
        done = 0
        for slot, (_, _, count) in enumerate(pieces):
            data = arrived.get(slot, b"")
            if len(data) != count:
                raise too_short(self, key, offset, len(buffer))
            buffer[done : done + count] = data
            done += count

    def patiently(self, call: Callable[[], T]) -> T:
        """With the tier's retries, for its readers."""
        return self._ask(call)

    def size(self, key: str) -> int:
        """See Tier.size."""
        return self._head(key).size

    def exists(self, key: str) -> bool:
        """See Tier.exists."""
        try:
            self._head(key)
        except NotFoundError:
            return False
        return True

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """See Tier.list. RADOS knows no order: all names are fetched first, then all heads, several at a time."""
        names = [name for name in self._ask(lambda: self._pool.names(self._pool.heads)) if name.startswith(prefix)]
        arrived: dict[int, bytes] = {}
        pool = self._pool
        begin = [
            partial(pool.read_later, pool.heads, name, 0, HEAD_BYTES, arrived, slot) for slot, name in enumerate(names)
        ]
        self._patience(lambda: pool.run(prefix, begin))
        for slot, name in enumerate(names):
            yield name, decode(arrived.get(slot, b""), f"{self!r}: {name}").size

    def delete(self, key: str) -> None:
        """See Tier.delete: the head first, so that a crash leaves parts that nobody sees."""
        head = self._head(key)

        def remove() -> None:
            with self._pool.errors(key):
                self._pool.heads.remove_object(key)

        self._ask(remove)
        self._drop_parts(key, head)

    def _drop_parts(self, key: str, head: Head) -> None:
        for name in head.names(key):
            self._remove_part(name)

    def _remove_part(self, name: str) -> None:
        with suppress(NotFoundError), self._pool.errors(name):
            self._pool.parts.remove_object(name)

    def free_bytes(self) -> int | None:
        """What the pool can take, by the monitor."""
        return self._pool.free_bytes()

    def describe(self) -> str:
        """Pool, copies, cluster."""
        return f"{self._storage}, {self._pool.facts()}"

    def clear_unfinished(self, older_than: float) -> Sequence[str]:
        """See Tier.clear_unfinished: parts of an upload whose head is not there, or is another's.

        Their age is by this host's clock, as RADOS keeps the writer's; hosts must agree to less than `older_than`.
        """
        orphans: dict[tuple[str, bytes], list[str]] = {}
        for name in self._ask(lambda: self._pool.names(self._pool.parts)):
            orphans.setdefault(upload_of(name), []).append(name)
        cleared = []
        for (key, upload), names in orphans.items():
            if self._old(names, older_than) and not self._in_use(key, upload):
                for name in names:
                    self._remove_part(name)
                cleared.append(key)
        return cleared

    def _in_use(self, key: str, upload: bytes) -> bool:
        try:
            return self._head(key).upload == upload
        except NotFoundError:
            return False

    def _old(self, names: Sequence[str], older_than: float) -> bool:
        """Whether all of an upload's parts are; one that just went is not."""
        for name in names:
            try:
                with self._pool.errors(name):
                    _, changed = self._pool.parts.stat(name)
            except NotFoundError:
                return False
            if time.time() - time.mktime(changed) <= older_than:
                return False
        return True


class RadosReader:
    """One object for many reads."""

    def __init__(self, tier: RadosTier, key: str, head: Head) -> None:
        self._tier, self._key, self._head = tier, key, head
        self.size = head.size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See TierReader.read_into."""
        if offset + len(buffer) > self.size:
            raise too_short(self._tier, self._key, offset, len(buffer))
        if len(buffer):
            self._tier.patiently(lambda: self._tier.fill(self._key, self._head, offset, buffer))

    def close(self) -> None:
        """Nothing is held between reads."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
