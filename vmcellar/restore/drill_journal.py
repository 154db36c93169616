"""What a drill leaves behind when its process dies, and how the next one clears it.

A drill's journal is written before anything else of it exists, and is removed last. While the drill lives it holds a
lock on the file, which the kernel drops with the process; a journal without a holder names a leftover. Only what is
provably the drill's own is removed: a domain of the journal's name all of whose disks lie in the drill's folder, and a
folder that has the drill's mark in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import libvirt

from vmcellar.errors import PermanentError, VmcellarError
from vmcellar.folders import PASSABLE, make_passable, sync_folder
from vmcellar.sources.domain_files import own_files, path_in
from vmcellar.sources.libvirt_connection import Connection, explain

log = logging.getLogger(__name__)

FOLDER = "drills"
"""Of journals in the state directory, and of restored images in the scratch folder."""
CLEARED = "a drill whose process died: its VM and images were removed"
MARK = ".vmcellar-drill"
_NEW = ".new"
_UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
)


@dataclass(frozen=True, slots=True)
class Journal:
    """One drill: the VM `name` at `uri` and the `folder` are its own. `keep`: the user wants to look at them."""

    name: str
    point: str
    vm: str
    uri: str
    folder: str
    keep: bool


@contextmanager
def drilling(state: Path, journal: Journal) -> Iterator[None]:
    """Hold the journal while the block runs; afterwards everything of the drill is gone, unless it is to be kept.

    The block's error wins over one of clearing up, which is logged: the next drill tries again.
    """
    path = _path(state, journal.name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(path.with_suffix(_NEW)) as handle:
        _write(handle, path, journal)
        _make_folder(journal)
        try:
            yield
        finally:
            if not journal.keep:
                _clear_or_warn(path, journal)


def clear(state: Path, *, kept: bool = False, name: str = "") -> list[str]:
    """Remove what drills left whose process is gone: their VM, their folder, their journal; the names of those.

    Those that were to be kept only with `kept`, or when `name` names one. A living drill is left alone. PermanentError
    names one that cannot be removed, after all others were.
    """
    cleared, problems = [], []
    for path in sorted((state / FOLDER).glob(f"*{_NEW}")):
        with contextlib.suppress(BlockingIOError, FileNotFoundError), _locked(path, os.O_RDWR):
            path.unlink(missing_ok=True)  # it died while it wrote its journal, before all else
    for path in sorted((state / FOLDER).glob("*.json")):
        with contextlib.suppress(BlockingIOError, FileNotFoundError), _locked(path, os.O_RDWR):
            journal = _read(path)
            if journal is not None and name in ("", journal.name) and (kept or name or not journal.keep):
                try:
                    _remove(path, journal)
                    cleared.append(journal.name)
                except (VmcellarError, OSError) as error:
                    problems.append(f"{journal.name}: {error}")
    if problems:
        raise PermanentError("leftovers of drills stay: " + "; ".join(problems), hint="look at them with `virsh list`")
    return cleared


def journals(state: Path) -> list[Journal]:
    """All drills that live, were kept, or left something."""
    found = [_read(path) for path in sorted((state / FOLDER).glob("*.json"))]
    return [journal for journal in found if journal is not None]


def _path(state: Path, name: str) -> Path:
    return state / FOLDER / f"{name}.json"


@contextmanager
def _locked(path: Path, flags: int = os.O_RDWR | os.O_CREAT | os.O_EXCL) -> Iterator[int]:
    """The file under a lock, a new one without `flags`; BlockingIOError while another process holds it."""
    handle = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield handle
    finally:
        os.close(handle)


def _write(handle: int, path: Path, journal: Journal) -> None:
    """Make the journal durable under its name, locked from the first instant on that anybody sees it."""
    os.pwrite(handle, json.dumps(asdict(journal)).encode(), 0)
    os.fsync(handle)
    path.with_suffix(_NEW).rename(path)
    sync_folder(path.parent)


def _read(path: Path) -> Journal | None:
    try:
        return Journal(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _make_folder(journal: Journal) -> None:
    folder = Path(journal.folder)
    make_passable(folder.parent)
    folder.mkdir()
    folder.chmod(PASSABLE)
    (folder / MARK).write_text(journal.name)


def _clear_or_warn(path: Path, journal: Journal) -> None:
    try:
        _remove(path, journal)
    except (VmcellarError, OSError) as error:
        log.warning("drill %s: not all of it could be removed, the next drill tries again: %s", journal.name, error)


def _remove(path: Path, journal: Journal) -> None:
    """The VM, then the folder, then the journal: at any step what is left is still named."""
    _remove_domain(journal)
    folder = Path(journal.folder)
    if folder.exists():
        mark = folder / MARK
        if any(folder.iterdir()) and not (mark.is_file() and mark.read_text() in ("", journal.name)):
            raise PermanentError(f"{folder} is not the folder of drill {journal.name}", hint="look at it, remove it")
        _empty(folder, mark)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()  # of the last drill
    path.unlink(missing_ok=True)


def _empty(folder: Path, mark: Path) -> None:
    """The mark goes last: what a crash leaves is still known as the drill's."""
    for entry in folder.iterdir():
        if entry == mark:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    mark.unlink(missing_ok=True)
    folder.rmdir()


def _remove_domain(journal: Journal) -> None:
    connection = Connection(journal.uri)
    try:
        domain = connection.find(journal.name)
        if domain is None:
            return
        foreign = _foreign_files(domain.XMLDesc(), Path(journal.folder))
        if foreign:
            raise PermanentError(f"VM {journal.name} uses {foreign[0]}, which is not the drill's: it is left alone")
        if domain.isActive():
            with contextlib.suppress(libvirt.libvirtError):  # it may end by itself just now
                domain.destroy()
        domain.undefineFlags(_UNDEFINE)
    except libvirt.libvirtError as error:
        raise explain(error, journal.name, "removing the drill's VM") from error
    finally:
        connection.close()


def _foreign_files(xml: str, folder: Path) -> list[str]:
    """The disks and boot files of a domain that lie outside of the folder; media of CD drives do not count."""
    domain = ET.fromstring(xml)  # noqa: S314  (libvirt's own output)
    os = domain.find("os")
    used = [path for _, element in own_files(os) if (path := path_in(element))] if os is not None else []
    for disk in domain.iterfind("devices/disk"):
        if disk.get("device", "disk") in ("cdrom", "floppy"):
            continue
        source = disk.find("source")
        used.append(source.get("file", "a disk that is no file") if source is not None else "a disk without a file")
    return [path for path in used if not Path(path).is_relative_to(folder)]
