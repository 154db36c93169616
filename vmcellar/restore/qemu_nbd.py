"""A private qemu-nbd for one image: started, spoken to over libnbd, and ended on every path.

The listening socket is ours and is handed over by socket activation (LISTEN_FDS, systemd's sd_listen_fds protocol),
and our connections are made before the process starts. So nobody has to wait or poll for readiness, and a qemu-nbd
whose starter was killed sees its last client gone and exits. The socket lies in a private folder and is unlinked at
once: no other user can connect.
"""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import tempfile
from pathlib import Path

import nbd

from vmcellar import memory
from vmcellar.errors import PermanentError

# The shell knows the process id that LISTEN_PID must hold, and moves the socket from its standard input to where the
# protocol wants it, descriptor 3.
_ACTIVATE = 'exec 3<&0 0</dev/null; LISTEN_PID=$$; export LISTEN_PID; exec "$0" "$@"'

STOP_SECONDS = 60.0
"""How long qemu-nbd may take to write its caches and exit after the last client left."""


def create_image(path: Path, size: int) -> None:
    """A new qcow2 image of `size` bytes with 64 KiB clusters.

    PermanentError naming the file and qemu-img's own words.
    """
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=1.1,cluster_size=65536", str(path), str(size)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise PermanentError("qemu-img is not installed", hint="apt-get install qemu-utils") from error
    if done.returncode != 0:
        raise PermanentError(f"cannot create {path}: {done.stderr.strip()}", hint="check the folder and its free space")


class QemuNbd:
    """A writable export of one image with `connections` clients of ours; `write` may be called by any thread."""

    def __init__(self, image: Path, image_format: str, *, connections: int, direct: bool) -> None:
        self.image = image
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process that writes it)
        self._handles: list[nbd.NBD] = []
        self._free: queue.SimpleQueue[nbd.NBD] = queue.SimpleQueue()
        cache = "none" if direct else "writeback"
        arguments = ["-f", image_format, f"--cache={cache}", "--discard=unmap", "-e", str(connections), str(image)]
        clients = self._start(arguments, connections)
        try:
            for client in clients:
                self._handles.append(_attach(client))
        except nbd.Error as error:
            words = self._words()
            self.kill()
            raise PermanentError(f"qemu-nbd cannot open {image}: {words}") from error
        finally:
            for client in clients:
                client.close()
        for handle in self._handles:
            self._free.put(handle)

    def _start(self, arguments: list[str], connections: int) -> list[socket.socket]:
        with tempfile.TemporaryDirectory(prefix="vmcellar-nbd-") as folder, socket.socket(socket.AF_UNIX) as listener:
            address = str(Path(folder) / "socket")
            listener.bind(address)
            listener.listen(connections)
            clients = [_connect(address) for _ in range(connections)]
            command = ["/bin/sh", "-c", _ACTIVATE, "qemu-nbd", *arguments]
            self._process = subprocess.Popen(
                command,
                stdin=listener.fileno(),
                stdout=self._log,
                stderr=self._log,
                env={**os.environ, **memory.helper_environment(), "LISTEN_FDS": "1"},
                start_new_session=True,  # Ctrl-C is ours to handle; qemu-nbd must not end in mid-write by it
            )
        return clients

    def write(self, offset: int, data: memoryview) -> None:
        """Write and wait for the answer. OSError with QEMU's errno;

        The bytes are durable only after `flush_and_stop`.
        """
        handle = self._free.get()
        try:
            handle.pwrite(data, offset)
        except nbd.Error as error:
            raise OSError(error.errnum or 5, f"{error.string} {self._words()}".strip()) from error
        finally:
            self._free.put(handle)

    def flush_and_stop(self) -> None:
        """Make all writes durable, then wait for qemu-nbd's own clean end. OSError when either failed."""
        try:
            self._handles[0].flush()
            for handle in self._handles:
                handle.shutdown()
            code = self._process.wait(STOP_SECONDS)
        except nbd.Error as error:
            raise OSError(error.errnum or 5, f"{error.string} {self._words()}".strip()) from error
        except subprocess.TimeoutExpired as error:
            raise OSError(5, f"qemu-nbd did not end within {STOP_SECONDS:.0f} s") from error
        if code != 0:
            raise OSError(5, f"qemu-nbd ended with {code}: {self._words()}")
        self.kill()

    def kill(self) -> None:
        """End the process now and wait for it; harmless when it has ended."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._handles.clear()  # libnbd closes a connection when its handle goes
        self._free = queue.SimpleQueue()
        self._log.close()

    def _words(self) -> str:
        """What qemu-nbd said, for the error message."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()


def _connect(address: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(address)
    return client


def _attach(client: socket.socket) -> nbd.NBD:
    """A libnbd handle on a connected socket, which it then owns; waits for the server's greeting."""
    handle = nbd.NBD()
    handle.connect_socket(client.detach())
    return handle
