"""The folder of one run's socket and scratch files, which says whose it is also after its process died.

While a process works with one it holds a shared lock (flock) on the owner file inside, which the kernel drops when the
process ends. So another state directory of this host, which knows nothing of that process's locks, can tell.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from vmcellar.errors import PermanentError, TransientError
from vmcellar.folders import make_passable
from vmcellar.sources.base import ScratchPressure

SOCKET_PATH_MAX = 107
"""Bytes of a UNIX socket's path, without the closing zero (unix(7))."""

OWNER_FILE = "owner.json"
FROZEN_MARKER = "frozen"
STARTED_MARKER = "started"
"""In it: which start of the VM was ours; empty while that is under way."""
_PREFIX = "vmc-"


@dataclass(frozen=True, slots=True)
class Owner:
    """Which run, of which VM, repository and state directory (`instance`), a folder belongs to.

    `host` is the other host whose VM it is, and empty for this one's: VMs of two hosts may have one name.
    """

    vm: str
    vm_uuid: str
    run_id: str
    repository_id: str
    checkpoint: str
    instance: str = ""
    host: str = ""


class Hold:
    """This process's hold of a folder, until `release` or the process's end."""

    def __init__(self, folder: Path) -> None:
        """OSError when the folder is gone."""
        file = os.open(folder / OWNER_FILE, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(file, fcntl.LOCK_SH)
        self.release = weakref.finalize(self, os.close, file)
        """Let go; may be called again."""


def is_held(folder: Path) -> bool:
    """Whether a process that lives holds the folder."""
    try:
        file = os.open(folder / OWNER_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


_OWNER = TypeAdapter(Owner)


def create(base: Path, owner: Owner, user: tuple[int, int]) -> tuple[Path, Hold]:
    """A new folder below `base`, held, that QEMU, running as `user` (uid, gid), may write to.

    It appears by rename with its owner file inside, so a crash leaves no folder without an owner but hidden ones.
    PermanentError with the fix where QEMU cannot get there.
    """
    name = _PREFIX + secrets.token_hex(6)
    _check_path(base / name / "nbd")
    try:
        make_passable(base)
        building = base / f".{name}"
        building.mkdir(mode=0o770)
        (building / OWNER_FILE).write_bytes(_OWNER.dump_json(owner))
        give(building, user)
        hold = Hold(building)  # before it appears: nobody may take it for a leftover
        building.rename(base / name)
    except OSError as error:
        raise PermanentError(
            f"{owner.vm}: no scratch folder in {base}: {error}",
            hint="run as root, or set `scratch` in vmcellar.yaml to a folder that you and QEMU may write to",
        ) from error
    try:
        check_reachable(base / name, user)
    except PermanentError:
        remove(base / name)
        raise
    return base / name, hold


def owned(base: Path, vm: str, repository_id: str, host: str) -> Iterator[tuple[Path, Owner]]:
    """The folders below `base` of the runs of this VM, of `host`, in this repository."""
    for folder, owner in owners(base):
        if (owner.vm, owner.repository_id, owner.host) == (vm, repository_id, host):
            yield folder, owner


def owners(base: Path) -> Iterator[tuple[Path, Owner]]:
    """All folders below `base` that `create` made, and whose they are."""
    for folder in sorted(base.glob(f"{_PREFIX}*")):
        owner = owner_of(folder)
        if owner is not None:
            yield folder, owner


def owner_of(folder: Path) -> Owner | None:
    """Whose a folder is; None when it is not there, or none of ours."""
    try:
        return _OWNER.validate_json((folder / OWNER_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def remove(folder: Path) -> None:
    """Remove a folder that `create` made, with all in it. Idempotent."""
    if folder.name.startswith(_PREFIX):
        shutil.rmtree(folder, ignore_errors=True)


def remove_files(folder: Path) -> None:
    """Remove the scratch files alone, which may be large, and leave what says whose the folder is."""
    for path in folder.glob("*.scratch"):
        path.unlink(missing_ok=True)


def pressure(folder: Path) -> ScratchPressure:
    """What the scratch files in `folder` occupy, and what is free beside them; TransientError once it is gone."""
    try:
        used = sum(path.stat().st_blocks * 512 for path in folder.glob("*.scratch"))
        disk = os.statvfs(folder)
    except FileNotFoundError as error:
        hint = "its backup job was ended by somebody else; the next run begins a new one"
        raise TransientError(f"the scratch folder {folder} is gone", hint=hint) from error
    return ScratchPressure(used, disk.f_bavail * disk.f_frsize)


def check_space(base: Path, vm: str, disk_sizes: Sequence[int], reserve: int) -> None:
    """PermanentError unless `reserve` bytes, or as much as all disks hold, are free for what the guest overwrites."""
    disk = os.statvfs(base)
    free, need = disk.f_bavail * disk.f_frsize, min(reserve, sum(disk_sizes))
    if free < need:
        raise PermanentError(
            f"{vm}: {free >> 20} MiB are free in the scratch folder {base}, {need >> 20} MiB are wanted: "
            "if it filled, the guest's own writes would fail",
            hint="free space there, or set `scratch` in vmcellar.yaml to a larger file system",
        )


def _check_path(socket: Path) -> None:
    length = len(os.fsencode(socket))
    if length > SOCKET_PATH_MAX:
        raise PermanentError(
            f"the scratch folder's path is too long for a socket: {socket} has {length} bytes of {SOCKET_PATH_MAX}",
            hint="set `scratch` in vmcellar.yaml to a shorter path",
        )


def give(folder: Path, user: tuple[int, int]) -> None:
    """Let QEMU, running as `user` (uid, gid), write in a folder."""
    if os.geteuid() == 0:
        os.chown(folder, *user)
    elif os.geteuid() != user[0]:
        folder.chmod(0o777)  # inside it only libvirt's and our files; both accounts must write and remove


def check_reachable(folder: Path, user: tuple[int, int]) -> None:
    """PermanentError when `user` (uid, gid) may not get to a folder."""
    uid, gid = user
    if uid == 0:
        return
    for parent in folder.resolve().parents:
        info = parent.stat()
        who = stat.S_IXUSR if info.st_uid == uid else stat.S_IXGRP if info.st_gid == gid else stat.S_IXOTH
        if not info.st_mode & who:
            raise PermanentError(
                f"QEMU (uid {uid}) may not enter {parent}, so it cannot write scratch files in {folder.parent}",
                hint=f"`chmod o+x {parent}`, or set `scratch` in vmcellar.yaml to a folder that QEMU can reach",
            )
