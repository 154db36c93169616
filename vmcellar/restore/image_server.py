"""An existing disk opened for reading and writing by QEMU itself: qemu-nbd in front of it, libnbd towards us.

QEMU knows every image format, tracks the writes in the image's dirty bitmaps (so the next incremental backup is right)
and takes the image's locks: a disk that a running VM has open is refused, and none can start on it meanwhile. The
helper ends with this process, also by SIGKILL, and then closes the image in order.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import queue
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from vmcellar.errors import PermanentError, TransientError, VmcellarError
from vmcellar.memory import helper_environment

if TYPE_CHECKING:
    import nbd

CONNECTIONS = 4
"""Requests under way at once; each connection has one."""

_START_SECONDS = 60.0
_STOP_SECONDS = 60.0
_POLL_SECONDS = 0.01
_REQUEST = 1 << 30  # one request to zero or for the map, below the protocol's 32 bits
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ImageServer:
    """One disk, open while the block runs. Any thread; up to CONNECTIONS requests at once, others wait."""

    def __init__(self, name: str, options: Mapping[str, object], lock: int | None = None) -> None:
        """`options` are QEMU's blockdev options of the disk, `name` stands for it in messages.

        The helper inherits the descriptor `lock`: what is locked by it stays locked until the last write is done.
        """
        self.name = name
        self.size = 0
        self._options = options
        self._lock = lock
        self._held = ExitStack()
        self._free: queue.LifoQueue[nbd.NBD] = queue.LifoQueue()

    def __enter__(self) -> Self:
        """Returns when the disk is open. PermanentError with QEMU's words when it cannot be, as for one in use."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vmcellar-disk-")))
            process = self._spawn(folder)
            stack.callback(_end, process)
            for _ in range(CONNECTIONS):
                handle = self._connect(process, folder)
                stack.callback(_close, handle)
                self._free.put(handle)
            self._held = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the image and wait until QEMU has written all that belongs to it."""
        self._held.close()

    def read(self, offset: int, length: int) -> bytearray:
        """The bytes there; TransientError or PermanentError names disk and byte."""
        with self._handle(f"reading {length} bytes at byte {offset}") as handle:
            content: bytearray = handle.pread(length, offset)
            return content

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Put `data` there; durable after `flush`."""
        with self._handle(f"writing {len(data)} bytes at byte {offset}") as handle:
            handle.pwrite(bytes(data), offset)

    def zero(self, offset: int, length: int) -> None:
        """Make it read as zero and, where the disk can, take no space."""
        for start in range(offset, offset + length, _REQUEST):
            with self._handle(f"zeroing at byte {start}") as handle:
                handle.zero(min(_REQUEST, offset + length - start), start)

    def flush(self) -> None:
        """Make everything written durable."""
        with self._handle("flushing") as handle:
            handle.flush()

    def data(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(start, end) of what of the range may hold other bytes than zero, in order."""
        end = offset + length
        while offset < end:
            found = self._status(offset, min(_REQUEST, end - offset))
            for size, zero in found:
                stop = min(offset + size, end)
                if not zero:
                    yield offset, stop
                offset = stop

    def _status(self, offset: int, length: int) -> list[tuple[int, bool]]:
        import nbd  # noqa: PLC0415  (a system package, needed here alone)

        found: list[tuple[int, bool]] = []

        def note(_context: str, _offset: int, entries: list[int], _error: int) -> int:
            pairs = zip(entries[::2], entries[1::2], strict=True)
            found.extend((size, bool(flags & nbd.STATE_ZERO)) for size, flags in pairs)
            return 0

        with self._handle(f"asking for the map at byte {offset}") as handle:
            if not handle.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION):
                return [(length, False)]
            handle.block_status(length, offset, note)
        return found

    @contextmanager
    def _handle(self, doing: str) -> Iterator[nbd.NBD]:
        import nbd  # noqa: PLC0415  (a system package, needed here alone)

        handle = self._free.get()
        try:
            yield handle
        except nbd.Error as error:
            raise self._explained(doing, error) from error
        finally:
            self._free.put(handle)

    def _explained(self, doing: str, error: nbd.Error) -> VmcellarError:
        message = f"{self.name}: {doing}: {error.string}"
        if error.errnum in _FULL:
            return PermanentError(message, hint="free space where the disk lies, then type the same command again")
        return TransientError(message, hint="check the storage it lies on, then type the same command again")

    def _spawn(self, folder: Path) -> subprocess.Popen[bytes]:
        """With a signal to end when this process does, whatever ends it: setpriv of util-linux sees to that."""
        command = [
            *("setpriv", "--pdeathsig", "TERM", "qemu-nbd", "--persistent", "--discard=unmap"),
            *(f"--shared={CONNECTIONS}", f"--socket={folder / 'nbd.sock'}", f"json:{json.dumps(self._options)}"),
        ]
        try:
            with (folder / "words").open("wb") as words:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=words,
                    env={**os.environ, **helper_environment(), "LC_ALL": "C"},
                    umask=0o077,
                    start_new_session=True,
                    pass_fds=[] if self._lock is None else [self._lock],
                )
        except FileNotFoundError as error:
            raise PermanentError(f"{error.filename} is not installed", hint="apt-get install qemu-utils") from error

    def _refused(self, words: str) -> PermanentError:
        lines = [line.removeprefix("qemu-nbd: ") for line in words.splitlines() if line.strip()]
        return PermanentError(
            f"{self.name}: QEMU cannot open it: {'; '.join(lines) or 'qemu-nbd ended without a word'}",
            hint="if it is in use, shut down the VM or program that has it open; nothing was written to it",
        )

    def _connect(self, process: subprocess.Popen[bytes], folder: Path) -> nbd.NBD:
        """A connection that stands once the image is open.

        qemu-nbd binds its socket, listens and opens the image one after the other, and ends when it cannot open it: so
        a connection that fails is tried again as long as it lives.
        """
        import nbd  # noqa: PLC0415  (a system package, needed here alone)

        limit = time.monotonic() + _START_SECONDS
        while True:
            handle = nbd.NBD()
            handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
            try:
                handle.connect_unix(str(folder / "nbd.sock"))
                self.size = handle.get_size()
            except nbd.Error as error:
                if process.poll() is not None:
                    raise self._refused((folder / "words").read_text(errors="replace")) from error
                if time.monotonic() > limit:
                    raise self._explained("connecting to qemu-nbd", error) from error
                time.sleep(_POLL_SECONDS)
            else:
                return handle


def _close(handle: nbd.NBD) -> None:
    import nbd  # noqa: PLC0415  (a system package, needed here alone)

    with contextlib.suppress(nbd.Error):
        handle.shutdown()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
