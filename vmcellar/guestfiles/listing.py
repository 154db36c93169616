"""`ls`: what a folder in a mounted file system holds."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmcellar.errors import PermanentError
from vmcellar.guestfiles.library import GuestfsError

if TYPE_CHECKING:
    from vmcellar.guestfiles.library import Guestfs


@dataclass(frozen=True, slots=True)
class Entry:
    """One name: `mode` with the type's bits as in stat(2), `size` in bytes, `mtime` in nanoseconds since 1970.

    `link` is where a symbolic link points to, else empty.
    """

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    link: bytes

    @property
    def mode_words(self) -> str:
        """As `ls -l` writes it."""
        return stat.filemode(self.mode)


def list_path(guestfs: Guestfs, path: bytes) -> tuple[Entry, ...]:
    """The content of the folder at `path`, in the order of bytes; of anything else, it alone.

    A symbolic link to a folder is followed. PermanentError when there is nothing.
    """
    parent, name = split(guestfs, path)
    whole = parent + b"/" + name if name else parent
    try:
        real = guestfs.real_path(whole)
    except GuestfsError:  # a link to nothing is still a link
        real = whole
    if guestfs.is_folder(real):
        return _entries(guestfs, real, guestfs.names(real))
    return _entries(guestfs, parent, [name])


def split(guestfs: Guestfs, path: bytes) -> tuple[bytes, bytes]:
    """The real folder that `path` lies in, and its name there, which exists and may be a link; "/" has the name "".

    PermanentError when there is nothing at `path`.
    """
    parts = [part for part in path.split(b"/") if part]
    if not parts:
        return b"/", b""
    try:
        if parts[-1] in (b".", b".."):
            return split(guestfs, guestfs.real_path(path))
        parent = guestfs.real_path(b"/" + b"/".join(parts[:-1]))
        if parts[-1] in guestfs.names(parent):
            return parent, parts[-1]
    except GuestfsError as error:
        raise PermanentError(f"{shown(path)}: {error.message}") from error
    raise PermanentError(f"{shown(path)}: no such file or folder in the guest", hint="`ls` shows what is there")


def shown(name: bytes) -> str:
    """A name for people: what is no text, and what would steer a terminal, is written as an escape."""
    text = name.decode(errors="backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _entries(guestfs: Guestfs, folder: bytes, names: list[bytes]) -> tuple[Entry, ...]:
    names = sorted(names)
    found = zip(names, guestfs.stats(folder, names), guestfs.links(folder, names), strict=True)
    return tuple(
        Entry(name, one.mode, one.uid, one.gid, one.size, one.mtime * 10**9 + one.mtime_ns, link)
        for name, one, link in found
    )
