"""`get` and `tar`: files out of a mounted file system, with owners, modes, times, holes, links, xattrs and ACLs.

tar in the appliance writes them as one pax archive, so a hole costs nothing on the way. `get` gives it to this host's
tar, which may make no device nodes, in a new folder beside the destination; what is complete is then moved there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vmcellar.errors import CancelledError, PermanentError
from vmcellar.guestfiles.library import GuestfsError
from vmcellar.guestfiles.listing import shown, split
from vmcellar.guestfiles.patterns import all_but

if TYPE_CHECKING:
    from vmcellar.guestfiles.library import Guestfs
    from vmcellar.progress import CancelToken

_PIECE = 1 << 20
_NO_DEVICE = b"Cannot mknod: Operation not permitted"
_NO_DEVICES = ("setpriv", "--bounding-set=-mknod", "--inh-caps=-mknod")
"""Only root could make any."""

_TAR = (
    *("tar", "--extract", "--file=-", "--numeric-owner"),
    *("--xattrs", "--xattrs-include=*", "--acls", "--no-unquote"),
)


def archive(guestfs: Guestfs, path: bytes, descriptor: int, cancel: CancelToken) -> None:
    """Write the file or folder at `path` as a pax archive to an open descriptor, which stays open.

    Names begin with "./", below the folder at `path`; a single file has its own name. PermanentError when it does not
    exist or cannot be read to its end: then the archive is not complete. OSError when it cannot be written.
    """
    folder, name = split(guestfs, path)
    whole = folder.rstrip(b"/") + b"/" + name
    alone = bool(name) and not guestfs.is_folder(whole)
    source, excludes = (folder, all_but(name)) if alone else (whole, ())
    try:
        with _reading(guestfs, source, excludes) as pipe:
            while not cancel.cancelled and (piece := os.read(pipe, _PIECE)):
                _write_all(descriptor, piece)
    except GuestfsError as error:
        if not cancel.cancelled:
            raise PermanentError(
                f"{shown(path)} cannot be read to its end: {error.message}",
                hint="what is damaged in the repository was named above; if nothing was, the guest's file system is",
            ) from error
    if cancel.cancelled:
        raise CancelledError(f"{shown(path)} was not copied to its end")


def get(guestfs: Guestfs, path: bytes, wanted: Path | None, cancel: CancelToken) -> tuple[Path, int]:
    """Copy the file or folder at `path` out, to `wanted`, which must not exist, or into it when it is a folder.

    Returns where it is, and how many device nodes were left out. Owners are kept when root calls. A crash leaves
    a folder `.vmcellar-get-…` beside it.
    """
    folder, name = split(guestfs, path)
    is_folder = not name or guestfs.is_folder(folder.rstrip(b"/") + b"/" + name)
    place = _destination(path, name, wanted)
    with _folder_beside(place) as held:
        unpacked = held / "content"
        unpacked.mkdir()
        left_out = _unpack(guestfs, path, unpacked, () if is_folder else (b"./" + name,), cancel)
        found = unpacked if is_folder else unpacked / os.fsdecode(name)
        _refuse_existing(place)
        if not found.is_symlink() and not found.exists():
            raise PermanentError(f"{shown(path)} is a device node, which is not copied out")
        found.rename(place)
    return place, left_out


def _unpack(guestfs: Guestfs, path: bytes, folder: Path, members: tuple[bytes, ...], cancel: CancelToken) -> int:
    """The archive of `path`, of which `members` alone, into `folder`; how many device nodes were left out."""
    command: list[str | bytes] = [
        *(_NO_DEVICES if os.geteuid() == 0 else ()),
        *_TAR,
        f"--directory={folder}",
        "--",
        *members,
    ]
    environment = {**os.environ, "LC_ALL": "C"}
    with (
        tempfile.TemporaryFile() as words,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=words, env=environment
        ) as process,
    ):
        assert process.stdin is not None  # noqa: S101  (a pipe was asked for)
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended, and said why
                archive(guestfs, path, process.stdin.fileno(), cancel)
        except BaseException:
            process.kill()
            raise
        process.stdin.close()
        code = process.wait()
        words.seek(0)
        return _judged(code, words.read(), path)


def _judged(code: int, words: bytes, path: bytes) -> int:
    """What tar said: the device nodes that it was not let make; PermanentError for any other trouble."""
    lines = [line for line in words.splitlines() if line.strip()]
    devices = [line for line in lines if _NO_DEVICE in line]
    others = [line for line in lines if line not in devices and b"Exiting with failure status" not in line]
    if code and (others or not devices):
        raise PermanentError(f"{shown(path)}: {shown(b'; '.join(others[:3])) or f'tar ended with {code}'}")
    return len(devices)


@contextmanager
def _reading(guestfs: Guestfs, folder: bytes, excludes: tuple[bytes, ...]) -> Iterator[int]:
    """A pipe that the archive comes from, written by a thread, so that this one hears signals.

    GuestfsError at the end of the block when the archive is not complete; leaving the block early ends the thread.
    """
    source, sink = os.pipe()
    problems: list[GuestfsError] = []

    def send() -> None:
        try:
            guestfs.tar_out(folder, sink, excludes)
        except GuestfsError as error:
            problems.append(error)
        finally:
            os.close(sink)

    thread = threading.Thread(target=send, name="guestfs-tar")
    thread.start()
    try:
        yield source
    finally:
        os.close(source)
        if thread.is_alive():
            guestfs.cancel()
        thread.join()
    if problems:
        raise problems[0]


def _write_all(descriptor: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(descriptor, view) :]


def _destination(path: bytes, name: bytes, wanted: Path | None) -> Path:
    place = wanted or Path()
    if place.is_dir():
        if not name:
            raise PermanentError(f"{shown(path)} has no name of its own", hint="name a new folder for it")
        place = place / os.fsdecode(name)
    _refuse_existing(place)
    if not place.parent.is_dir():
        raise PermanentError(f"{place.parent} is no folder", hint="make it first")
    return place


def _refuse_existing(place: Path) -> None:
    if place.exists() or place.is_symlink():
        raise PermanentError(f"{place} exists already", hint="name another place, or remove it")


@contextmanager
def _folder_beside(place: Path) -> Iterator[Path]:
    """A new folder that only this user may enter, so that nobody sees a file before its owner and mode are right."""
    folder = Path(tempfile.mkdtemp(prefix=".vmcellar-get-", dir=place.parent))
    try:
        yield folder
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Also what its owner may not write to, as guests have it."""
    for top, folders, _files in os.walk(folder):
        for name in folders:
            below = Path(top) / name
            if not below.is_symlink():
                below.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
