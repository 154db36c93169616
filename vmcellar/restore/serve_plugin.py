"""The nbdkit plugin: runs inside nbdkit, which `vmcellar.restore.serve` starts; not imported by anything else.

nbdkit speaks NBD and calls these functions from many threads at once; each disk of the point is an export named by its
target. What to open comes as one line of JSON over the socket that `channel` names, so no secret is on a command line
or in an environment; the answer is one line as well, once clients can connect. Source: nbdkit-python-plugin(3).
"""

from __future__ import annotations

import errno
import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbdkit

from vmcellar.config import load_config
from vmcellar.crypto.recipient import PrivateKey
from vmcellar.errors import VmcellarError
from vmcellar.memory import keep_freed_memory
from vmcellar.repository.repository import Repository
from vmcellar.restore.serve_notes import ReadNotes
from vmcellar.restore.served_chunks import ChunkCache
from vmcellar.restore.served_disk import ServedDisk

API_VERSION = 2

_channel: list[int] = []
_disks: dict[str, ServedDisk] = {}
_notes: list[ReadNotes] = []


def thread_model() -> int:
    """Connections side by side, the requests of one connection in turn; what is read ahead makes up for it.

    With requests of one connection side by side, nbdkit 1.32 dies (an assertion in raw_send_socket) when a client goes
    away while several of them are answered, and all other clients with it.
    """
    return int(nbdkit.THREAD_MODEL_SERIALIZE_REQUESTS)


def config(key: str, value: str) -> None:
    """The only parameter is `channel`, the number of an inherited socket."""
    if key != "channel":
        raise RuntimeError(f"unknown parameter {key}")
    _channel.append(int(value))


def after_fork() -> None:
    """Open the repository, now that threads may be started; nbdkit listens already."""
    with socket.socket(fileno=_channel[0]) as channel, channel.makefile("rw", encoding="utf-8") as lines:
        wanted = json.loads(lines.readline())
        _notes.append(ReadNotes(wanted["notes"]))
        keep_freed_memory()
        private = PrivateKey(bytes.fromhex(wanted["private"])) if wanted["private"] else None
        repository = Repository.open(load_config(Path(wanted["config"])), private)
        point = repository.point(wanted["point"])
        chunks = ChunkCache(repository)
        for target in wanted["disks"]:
            _disks[target] = ServedDisk(repository, point.vm, point.disk(target), chunks)
        lines.write("ready\n")


def list_exports(readonly: bool, is_tls: bool) -> list[str]:
    """See nbdkit."""
    del readonly, is_tls
    return list(_disks)


def default_export(readonly: bool, is_tls: bool) -> str:
    """The first disk, for a client that names none."""
    del readonly, is_tls
    return next(iter(_disks))


def open(readonly: bool) -> ServedDisk:  # noqa: A001  (nbdkit's name)
    """See nbdkit; a client that asks for a disk that is not served is refused."""
    del readonly
    name = nbdkit.export_name()
    if name and name not in _disks:
        nbdkit.set_error(errno.ENOENT)
        raise RuntimeError(f"no disk {name} is served, only {', '.join(_disks)}")
    return _disks[name or next(iter(_disks))]


def get_size(disk: ServedDisk) -> int:
    """See nbdkit."""
    return disk.size


def can_write(disk: ServedDisk) -> bool:
    """Never: a point does not change."""
    del disk
    return False


def can_multi_conn(disk: ServedDisk) -> bool:
    """One client may read over many connections."""
    del disk
    return True


def can_extents(disk: ServedDisk) -> bool:
    """Holes are told."""
    del disk
    return True


def pread(disk: ServedDisk, buffer: memoryview, offset: int, flags: int) -> None:
    """See nbdkit. What cannot be read is EIO to the client and named on stderr."""
    del flags
    with _refusing():
        disk.read_into(offset, memoryview(buffer))


def extents(disk: ServedDisk, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    """See nbdkit."""
    del flags
    hole = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
    with _refusing():
        return [(found.offset, found.length, hole if found.hole else 0) for found in disk.extents(offset, count)]


@contextmanager
def _refusing() -> Iterator[None]:
    """What cannot be read is noted for who started us, named on stderr, and EIO; so is how long it took."""
    try:
        with _notes[0].reading():
            yield
    except VmcellarError as error:
        _notes[0].note(error)
        raise _refused(error) from None
    except Exception as error:  # EIO too, and nbdkit says what it is
        _notes[0].note(error)
        raise


def _refused(error: VmcellarError) -> OSError:
    sys.stderr.write(f"error: {error.message}\n")
    if error.hint:
        sys.stderr.write(f"  {error.hint}\n")
    sys.stderr.flush()
    nbdkit.set_error(errno.EIO)
    return OSError(errno.EIO, error.message)
