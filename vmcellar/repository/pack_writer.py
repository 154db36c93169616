"""Writes packs: several threads compress and seal, and each writes out what it completes. No lock is held meanwhile.

A chunk's place in the pack is reserved under a lock once its stored length is known; it is sealed and copied there
without one. The pack is cut into windows; whoever fills the last byte of a window writes it, with O_DIRECT where the
file system allows, which costs a twentieth of the CPU time of a write through the page cache.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vmcellar.crypto.layout import SEAL_OVERHEAD
from vmcellar.memory import BufferPool
from vmcellar.repository import layout, pack_format
from vmcellar.repository.codec import Compression
from vmcellar.repository.layout import HEADER_BYTES, TRAILER_BYTES
from vmcellar.repository.pack_format import ObjectCipher, PackRef, Table, Trailer
from vmcellar.tiers.local_errors import translate

if TYPE_CHECKING:
    from vmcellar.crypto.base import Keyring

WINDOW = 4 << 20
_buffers = BufferPool(WINDOW)
"""Windows of all writers of this process: at most two per thread that appends, and one per open pack."""


@dataclass(frozen=True, slots=True)
class SealedPack:
    """A whole pack in a staging folder, durable there, not yet on a tier. `rows` are its TOC_ROWs."""

    path: Path
    key: str
    id: bytes
    size: int
    rows: Table


@dataclass(slots=True)
class _Window:
    buffer: memoryview
    filled: int = 0


@dataclass(slots=True, eq=False)
class _OpenPack:
    """A pack that is being filled, guarded by the writer's lock; the bytes of a reservation belong to who made it."""

    ref: PackRef
    path: Path
    file: int
    cipher: ObjectCipher
    end: int = 0
    pending: int = 0
    closing: bool = False
    windows: dict[int, _Window] = field(default_factory=dict)
    rows: list[tuple[bytes, int, int, int, int, int, int]] = field(default_factory=list)


class PackWriter:
    """Packs of one kind in one staging folder. `append` from any number of threads; then `finish` or `abort` from one.

    A crash leaves files in the staging folder that nothing refers to. After an error only `abort` is allowed.
    """

    def __init__(
        self,
        keyring: Keyring,
        staging: Path,
        kind: int = layout.KIND_DATA,
        compression: Compression | None = None,
        pack_bytes: int = layout.PACK_BYTES,
    ) -> None:
        self._keyring = keyring
        self._staging = staging
        self._kind = kind
        self._compression = compression or Compression()
        self._pack_bytes = pack_bytes
        self._overhead = _overhead(keyring, kind)
        self._epoch = bytes(layout.NAME_BYTES) if kind == layout.KIND_META else keyring.epoch_id
        self._lock = threading.Lock()
        self._current: _OpenPack | None = None
        self._open: list[_OpenPack] = []
        self._done: list[SealedPack] = []

    def append(self, object_id: bytes, plain: bytes | memoryview, what: int = layout.WHAT_CHUNK) -> None:
        """Compress, seal and store one object of at most CHUNK_MAX bytes.

        `object_id` must be its id: `verify_pack` compares them. PermanentError when the file system is full.
        """
        length = len(plain)
        if not 0 < length <= layout.CHUNK_MAX:
            raise ValueError(f"an object has 1 to {layout.CHUNK_MAX} bytes, not {length}")
        method, packed = self._compression.encode(plain)
        self.append_packed(object_id, packed, length, method, what)

    def append_packed(self, object_id: bytes, packed: bytes | memoryview, length: int, method: int, what: int) -> None:
        """As `append`, of an object that is compressed already; `length` is that of its plain bytes."""
        row = (object_id, len(packed) + self._overhead, length, method, what)
        with self._errors():
            pack, ordinal, offset = self._reserve(*row)
            self._seal(pack, ordinal, offset, packed)
            self._settle(pack)

    def finish(self) -> list[SealedPack]:
        """Close the last pack and return all, in the order they were completed. Every `append` has returned."""
        last, self._current = self._current, None
        if last is not None:
            with self._errors():
                self._complete(last)
        return self._done

    def abort(self) -> None:
        """Remove everything that was written, also finished packs. Every `append` has returned or raised."""
        for pack in self._open:
            os.close(pack.file)
            pack.path.unlink(missing_ok=True)
            for window in pack.windows.values():
                _buffers.release(window.buffer)
        for sealed in self._done:
            sealed.path.unlink(missing_ok=True)
        self._open, self._done, self._current = [], [], None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise translate(error, f"writing packs in {self._staging}") from error

    def _reserve(
        self, object_id: bytes, stored: int, length: int, method: int, what: int
    ) -> tuple[_OpenPack, int, int]:
        """A place for one object: (pack, ordinal, offset). Completes the pack before, if nobody else will."""
        left: _OpenPack | None = None
        with self._lock:
            pack = self._current
            if pack is not None and self._is_full(pack, stored):
                pack.closing = True
                left = pack if pack.pending == 0 else None
                pack = None
            if pack is None:
                pack = self._current = self._begin()
            ordinal, offset = len(pack.rows), pack.end
            pack.rows.append((object_id, offset, stored, length, method, what, 0))
            pack.end += stored
            pack.pending += 1
        if left is not None:
            self._complete(left)
        return pack, ordinal, offset

    def _is_full(self, pack: _OpenPack, more: int) -> bool:
        return bool(pack.rows) and (pack.end + more > self._pack_bytes or len(pack.rows) >= layout.PACK_ROWS_MAX)

    def _settle(self, pack: _OpenPack) -> None:
        with self._lock:
            pack.pending -= 1
            last = pack.closing and pack.pending == 0
        if last:
            self._complete(pack)

    def _begin(self) -> _OpenPack:
        pack_id = secrets.token_bytes(layout.NAME_BYTES)
        ref = PackRef(pack_id, self._kind, self._epoch, 0)
        path = self._staging / f"{pack_id.hex()}.pack"
        cipher = pack_format.cipher_of(self._keyring, ref)
        pack = _OpenPack(ref, path, _create(path), cipher)
        self._open.append(pack)
        pack.windows[0] = _Window(_buffers.acquire(), HEADER_BYTES)
        pack.windows[0].buffer[:HEADER_BYTES] = pack_format.header(ref)
        pack.end = HEADER_BYTES
        return pack

    def _seal(self, pack: _OpenPack, ordinal: int, offset: int, stored: bytes | memoryview) -> None:
        """Seal an object where it belongs: straight into its window, unless it lies in two."""
        number, start = divmod(offset, WINDOW)
        length = len(stored) + self._overhead
        if start + length > WINDOW:
            self._fill(pack, offset, pack.cipher.seal(ordinal, stored))
            return
        pack.cipher.seal_into(ordinal, stored, self._window(pack, number).buffer[start : start + length])
        self._filled(pack, number, length)

    def _fill(self, pack: _OpenPack, offset: int, data: bytes) -> None:
        """Copy `data` to its place, in as many windows as it takes."""
        view = memoryview(data)
        while view:
            number, start = divmod(offset, WINDOW)
            piece = view[: WINDOW - start]
            self._window(pack, number).buffer[start : start + len(piece)] = piece
            self._filled(pack, number, len(piece))
            offset += len(piece)
            view = view[len(piece) :]

    def _window(self, pack: _OpenPack, number: int) -> _Window:
        with self._lock:
            if number not in pack.windows:
                pack.windows[number] = _Window(_buffers.acquire())
            return pack.windows[number]

    def _filled(self, pack: _OpenPack, number: int, count: int) -> None:
        """Note that `count` more bytes of a window are there; write it out when they were the last."""
        with self._lock:
            window = pack.windows[number]
            window.filled += count
            full = window.filled == WINDOW
        if full:
            self._flush(pack, number, WINDOW)

    def _flush(self, pack: _OpenPack, number: int, length: int) -> None:
        window = pack.windows[number]
        _write(pack.file, window.buffer[:length], number * WINDOW)
        with self._lock:
            del pack.windows[number]
        _buffers.release(window.buffer)

    def _complete(self, pack: _OpenPack) -> None:
        """Add table of contents and trailer, and make the file durable."""
        rows = _table(pack.rows)
        toc = pack_format.seal_toc(self._keyring, pack.ref, rows)
        size = pack_format.packed_size(pack.end + len(toc))
        padding = bytes(size - TRAILER_BYTES - pack.end - len(toc))
        tail = pack_format.trailer(pack.ref, Trailer(pack.end, len(toc), len(rows)))
        self._fill(pack, pack.end, toc + padding + tail)
        for number in list(pack.windows):
            self._flush(pack, number, pack.windows[number].filled)
        os.fsync(pack.file)
        os.close(pack.file)
        with self._lock:
            self._open.remove(pack)
            self._done.append(SealedPack(pack.path, pack.ref.key, pack.ref.id, size, rows))


def _overhead(keyring: Keyring, kind: int) -> int:
    """What sealing adds to an object: a GCM tag; for metadata whatever its seal adds, also to nothing."""
    if kind == layout.KIND_DATA:
        return SEAL_OVERHEAD
    return len(keyring.seal_meta(layout.OBJECT_SEAL, b"", b""))


def _table(rows: list[tuple[bytes, int, int, int, int, int, int]]) -> Table:
    table = np.zeros(len(rows), layout.TOC_ROW)
    table["chunk"] = np.frombuffer(b"".join(row[0] for row in rows), np.uint8).reshape(-1, layout.ID_BYTES)
    for place, name in enumerate(("offset", "stored", "length", "method", "what"), start=1):
        table[name] = [row[place] for row in rows]
    return table


def _create(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_DIRECT, 0o600)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        path.unlink(missing_ok=True)  # some file systems refuse O_DIRECT only after they made the file
        return os.open(path, flags, 0o600)


def _write(file: int, data: memoryview, offset: int) -> None:
    while data:
        try:
            count = os.pwrite(file, data, offset)
        except OSError as error:
            flags = fcntl.fcntl(file, fcntl.F_GETFL)
            if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
                raise
            fcntl.fcntl(file, fcntl.F_SETFL, flags & ~os.O_DIRECT)
            continue
        data, offset = data[count:], offset + count
