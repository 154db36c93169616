"""Read a disk over NBD: extents, dirty bitmaps and pipelined reads, with libnbd.

Source: the NBD protocol specification (structured replies, block status, block size constraints) and libnbd(3).
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlsplit

import nbd

from vmcellar.errors import PermanentError, TransientError
from vmcellar.memory import PAGE, BufferPool
from vmcellar.progress import CancelToken
from vmcellar.sources.base import Extent, ReadSink

ALLOCATION = "base:allocation"
DIRTY_BITMAP = "qemu:dirty-bitmap:"

PRIMING_BYTES = 4 << 20
STATUS_BYTES = 2 << 30
"""One block-status request: below the protocol's 32 bits, a multiple of every block size; bounds a reply's memory."""

LARGEST_READ = 32 << 20
"""What the specification lets a client assume when the server names no maximum."""

POLL_MILLISECONDS = 200
"""How long a wait lasts before the cancel token and the time limit are looked at; data wakes it at once."""

_LOST = frozenset({errno.ESHUTDOWN, errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE, errno.ECONNREFUSED, errno.ENOMEM})


_UNREACHABLE = _LOST | {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ETIMEDOUT}

_LOOK_UP = "getaddrinfo: "
"""With what libnbd begins to tell of a host's name that cannot be looked up; its number is 0, as of errors of TLS."""

_CERTIFICATES = "tls-certificates"
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def tls_uri(host: str, port: int, export: str, certificates: Path) -> str:
    """The URI of an export that is served with TLS; `certificates` is the folder with ours and with the CA's."""
    name = f"[{host}]" if ":" in host else host
    return f"nbds://{name}:{port}/{quote(export)}?{_CERTIFICATES}={quote(str(certificates))}"


def refuse_readable(uri: str, disk: str) -> None:
    """PermanentError where a disk would go over the network for everybody to read."""
    parts = urlsplit(uri)
    if parts.scheme == "nbd" and (parts.hostname or "localhost") not in _LOOPBACK:
        raise PermanentError(
            f"{disk}: NBD from {parts.hostname} without TLS is refused: everybody on the way could read the disk",
            hint="serve it with TLS (docs/remote-hosts.md), or through a tunnel that ends on 127.0.0.1",
        )


def _secure(handle: nbd.NBD, uri: str) -> bool:
    """Have TLS, and the server's name verified, where the URI asks for it; whether it does."""
    if urlsplit(uri).scheme != "nbds":
        return False
    handle.set_tls(nbd.TLS_REQUIRE)
    handle.set_uri_allow_tls(nbd.TLS_REQUIRE)
    handle.set_tls_verify_peer(True)
    handle.set_uri_allow_local_file(True)  # the folder that the URI names
    return True


@dataclass(frozen=True, slots=True)
class _Pending:
    """A request in flight, in one or more pieces when the server limits their size."""

    offset: int
    buffer: memoryview
    length: int
    cookies: tuple[int, ...]
    pieces: tuple[memoryview, ...]


class ExportReader:
    """One connection to one export; use it from one thread at a time, and open several for several threads.

    It reads 4 MiB once when it opens: QEMU's server allocates each request's buffer with malloc, and glibc maps and
    unmaps anything above 128 KiB anew, with page faults on every byte. Freeing one larger block raises that threshold
    for good, and reads of up to 1 MiB become twice as fast at a third of the CPU. (Above 32 MiB, glibc no longer
    learns.) A disk below 4 MiB is read as far as it goes.

    Reads ask for one piece each (NBD_CMD_FLAG_DF): without it QEMU drops the connection when it meets an unreadable
    sector, instead of answering with the error.

    Errors: TransientError when the server is lost, gone or silent for `timeout` seconds; PermanentError when it
    refuses or cannot read. After an error or a cancel in mid-read the connection is closed, so no late reply writes
    into a re-used buffer.
    """

    def __init__(
        self,
        uri: str,
        *,
        contexts: Sequence[str] = (ALLOCATION,),
        disk: str = "",
        depth: int = 4,
        timeout: float = 60.0,
    ) -> None:
        """Connect to `uri` (nbd+unix:///EXPORT?socket=PATH, or as `tls_uri` gives it), naming it `disk` in errors.

        PermanentError for nbd://HOST without TLS, unless HOST is this one: the disk would go over the network readable.

        `contexts` are what `extents` may be asked for; `depth` is how many requests are in flight.
        """
        self.disk = disk or uri
        self._depth = depth
        self._timeout = timeout
        self._no_cancel = CancelToken()
        self._connected_once = False
        self._handle = self._connect(uri, contexts)
        self._connected_once = True
        self.size: int = self._handle.get_size()
        self.largest_request = self._handle.get_block_size(nbd.SIZE_MAXIMUM) or LARGEST_READ
        self._flags: int = nbd.CMD_FLAG_DF if self._handle.can_df() else 0
        self._prime()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Say good-bye and drop the connection without waiting for the server. Idempotent."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        try:
            if handle.aio_is_ready():
                handle.aio_disconnect()
        except nbd.Error:
            pass  # the server went first; the socket closes with the handle, whose last reference this is

    def extents(
        self, context: str = ALLOCATION, offset: int = 0, length: int | None = None, cancel: CancelToken | None = None
    ) -> Iterator[Extent]:
        """The extents of [offset, offset + length) in order, neighbours of one kind merged.

        For `base:allocation` they cover the range without gaps, `zero` where it reads as zero. For
        `qemu:dirty-bitmap:NAME` only the dirty ones are given. Memory is bounded by one reply, whatever the disk's
        size.
        """
        if not self._offered(context):
            if context != ALLOCATION:
                raise PermanentError(f"{self.disk}: the server does not export {context}")
            yield from self._all_data(offset, length)
            return
        end = self.size if length is None else min(self.size, offset + length)
        run: Extent | None = None
        for extent in self._statuses(context, offset, end, cancel or self._no_cancel):
            if run is not None and run.offset + run.length == extent.offset and run.zero == extent.zero:
                run = Extent(run.offset, run.length + extent.length, run.zero)
                continue
            if run is not None:
                yield run
            run = extent
        if run is not None:
            yield run

    def read(
        self, requests: Iterable[tuple[int, int]], pool: BufferPool, sink: ReadSink, cancel: CancelToken | None = None
    ) -> None:
        """Read each (offset, length) and hand it to `sink` in the order of `requests`, up to `depth` in flight.

        A length is at most `pool.size`. The sink runs in this thread; what it raises ends the read and comes out here.
        A sink that returns True keeps the buffer and gives it back to `pool` itself.
        """
        cancel = cancel or self._no_cancel
        flying: deque[_Pending] = deque()
        source = iter(requests)
        try:
            while self._launch(source, pool, flying):
                self._await(flying[0], cancel)
                head = flying.popleft()
                if not sink(head.offset, head.buffer[: head.length]):
                    pool.release(head.buffer)
        except BaseException:
            self.close()
            raise

    def _launch(self, source: Iterator[tuple[int, int]], pool: BufferPool, flying: deque[_Pending]) -> bool:
        """Fill the pipeline; False when nothing is in flight and nothing is left."""
        while len(flying) < self._depth:
            request = next(source, None)
            if request is None:
                break
            flying.append(self._send(*request, pool))
        return bool(flying)

    def _send(self, offset: int, length: int, pool: BufferPool) -> _Pending:
        if not 0 < length <= pool.size or not 0 <= offset <= self.size - length:
            raise ValueError(f"{self.disk}: read of {length} bytes at {offset} from a disk of {self.size}")
        buffer = pool.acquire()
        cookies, pieces = [], []
        for start in range(0, length, self.largest_request):
            pieces.append(buffer[start : min(length, start + self.largest_request)])
            with self._errors(f"reading at byte {offset + start}"):
                piece = nbd.Buffer.from_buffer(pieces[-1])
                cookies.append(self._handle.aio_pread(piece, offset + start, flags=self._flags))
        return _Pending(offset, buffer, length, tuple(cookies), tuple(pieces))

    def _await(self, pending: _Pending, cancel: CancelToken) -> None:
        for cookie in pending.cookies:
            self._finish(cookie, f"reading {pending.length} bytes at byte {pending.offset}", cancel)
        for piece in pending.pieces:
            piece.release()  # libnbd 1.14 keeps a reference to each for ever, and by it a whole buffer

    def _finish(self, cookie: int, what: str, cancel: CancelToken) -> None:
        def done() -> bool:
            with self._errors(what):
                return bool(self._handle.aio_command_completed(cookie))

        self._drive(done, what, cancel)

    def _drive(self, done: Callable[[], bool], what: str, cancel: CancelToken) -> None:
        """Move the connection until `done`; silence of the server for the time limit is an error."""
        heard = time.monotonic()
        while not done():
            cancel.check()
            with self._errors(what):
                moved = self._handle.poll(POLL_MILLISECONDS)
            now = time.monotonic()
            if moved:
                heard = now
            elif now - heard > self._timeout:
                raise TransientError(
                    f"{self.disk}: the NBD server said nothing for {self._timeout:.0f} s while {what}",
                    hint="the host or its storage may hang; see the domain's log in /var/log/libvirt/qemu",
                )

    def _connect(self, uri: str, contexts: Sequence[str]) -> nbd.NBD:
        refuse_readable(uri, self.disk)
        handle = self._handle = nbd.NBD()
        self._secured = _secure(handle, uri)
        handle.set_pread_initialize(False)
        handle.set_strict_mode(handle.get_strict_mode() & ~nbd.STRICT_FLAGS)  # else aio_pread refuses NBD_CMD_FLAG_DF
        for context in contexts:
            handle.add_meta_context(context)
        with self._errors("connecting"):
            try:
                handle.aio_connect_uri(uri)
            except nbd.Error as error:
                if _LOOK_UP not in str(error):
                    raise
                raise self.not_found(error) from error
        self._drive(self._connected, "connecting", self._no_cancel)
        return handle

    def _connected(self) -> bool:
        if self._handle.aio_is_dead() or self._handle.aio_is_closed():
            if self._secured:
                raise self.not_secured("the NBD server closed the connection while connecting")
            raise TransientError(f"{self.disk}: the NBD server closed the connection while connecting")
        return bool(self._handle.aio_is_ready())

    def _prime(self) -> None:
        length = min(self.size, PRIMING_BYTES, self.largest_request)
        if length > 0:
            self.read([(0, length)], BufferPool(-(-length // PAGE) * PAGE), lambda _offset, _data: None)

    def _offered(self, context: str) -> bool:
        with self._errors("asking for contexts"):
            return bool(self._handle.can_meta_context(context))

    def _all_data(self, offset: int, length: int | None) -> Iterator[Extent]:
        end = self.size if length is None else min(self.size, offset + length)
        if end > offset:
            yield Extent(offset, end - offset)

    def _statuses(self, context: str, offset: int, end: int, cancel: CancelToken) -> Iterator[Extent]:
        dirty_only = context != ALLOCATION
        while offset < end:
            for length, flags in self._status(context, offset, min(STATUS_BYTES, end - offset), cancel):
                kept = min(length, end - offset)
                if not dirty_only:
                    yield Extent(offset, kept, bool(flags & nbd.STATE_ZERO))
                elif flags & 1:
                    yield Extent(offset, kept)
                offset += kept

    def _status(self, context: str, offset: int, count: int, cancel: CancelToken) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []

        def collect(name: str, _start: int, entries: list[int], _error: int) -> None:
            if name == context:
                found.extend(zip(entries[::2], entries[1::2], strict=True))

        what = f"asking for the extents at byte {offset}"
        with self._errors(what):
            cookie = self._handle.aio_block_status(count, offset, collect)
        self._finish(cookie, what, cancel)
        if not any(length for length, _ in found):
            raise PermanentError(f"{self.disk}: the NBD server gave no extents at byte {offset}")
        return found

    def _errors(self, what: str) -> _Errors:
        return _Errors(self, what)

    def not_secured(self, why: object) -> PermanentError:
        """The error for a server that is there, and with which no TLS connection comes about."""
        return PermanentError(
            f"{self.disk}: no TLS connection with the NBD server: {why}",
            hint="both sides need certificates of one CA, the server's with the host name of libvirt.uri "
            "(docs/remote-hosts.md)",
        )

    def not_found(self, why: object) -> TransientError:
        """The error for a host whose name cannot be looked up now, as `libvirt_remote.address_of` has it."""
        hint = "it is tried again; the host's name must lead to its address here (DNS, or /etc/hosts)"
        return TransientError(f"{self.disk}: the NBD server's host is not found: {why}", hint=hint)

    def fails_to_secure(self, error: nbd.Error) -> bool:
        """Whether `error` came while a connection by TLS was made, and not for want of a server."""
        return self._secured and error.errnum not in _UNREACHABLE and not self._connected_once

    def lost(self, error: nbd.Error) -> bool:
        """Whether `error` means that the connection is gone, rather than that the server refused one request."""
        handle = self._handle
        return handle is None or handle.aio_is_dead() or handle.aio_is_closed() or error.errnum in _LOST


def export_size(uri: str, disk: str) -> int:
    """How many bytes an export has; errors as ExportReader's."""
    with ExportReader(uri, contexts=(), disk=disk) as reader:
        return reader.size


class _Errors:
    """Turns libnbd's errors into ours, by errno and by the connection's state, never by text."""

    def __init__(self, reader: ExportReader, what: str) -> None:
        self._reader = reader
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, nbd.Error):
            return
        if self._reader.fails_to_secure(error):
            raise self._reader.not_secured(error) from error
        message = f"{self._reader.disk}: {self._what}: {error}"
        if self._reader.lost(error):
            hint = "the backup job or its VM may have ended; `vmcellar recover` clears what is left"
            raise TransientError(message, hint=hint) from error
        hint = "the host cannot read this part of the image: check its storage and the kernel log"
        raise PermanentError(message, hint=hint) from error
