"""Where the laboratory keeps things: a folder that QEMU's own user can reach.

QEMU runs as `libvirt-qemu`, so images, sockets and scratch files must lie below folders which that user may traverse; a
checkout or pytest's temporary folder (mode 0700) often is not. Source: libvirt's documentation on DAC ownership.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DEFAULT_DIR = Path("/var/cache/vmcellar-lab")


def lab_dir() -> Path:
    """The cache folder: $VMCELLAR_LAB_DIR or /var/cache/vmcellar-lab; made when missing."""
    path = Path(os.environ.get("VMCELLAR_LAB_DIR") or DEFAULT_DIR)
    path.mkdir(mode=0o755, parents=True, exist_ok=True)
    return path


def give_to_qemu(path: Path) -> None:
    """Make QEMU's user the owner of a file or folder; without such a user (no libvirt) nothing changes."""
    try:
        user = pwd.getpwnam("libvirt-qemu")
    except KeyError:
        return
    os.chown(path, user.pw_uid, user.pw_gid)


@contextmanager
def vm_folder(label: str = "vm") -> Iterator[Path]:
    """A new folder that belongs to QEMU's user; removed with its content at the end."""
    parent = lab_dir() / "work"
    parent.mkdir(mode=0o755, exist_ok=True)
    _sweep_folders(parent)
    path = Path(tempfile.mkdtemp(prefix=f"{label}-{os.getpid()}-", dir=parent))
    path.chmod(0o755)
    give_to_qemu(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def process_lives(pid: int) -> bool:
    """Whether a process with this id exists."""
    return Path(f"/proc/{pid}").exists()


def _sweep_folders(parent: Path) -> None:
    # A killed process cannot remove its folder; its id, in the name, says that nobody uses it any more.
    for path in parent.iterdir():
        parts = path.name.split("-")
        if len(parts) == 3 and parts[1].isdigit() and not process_lives(int(parts[1])):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def lab_lock(name: str) -> Iterator[None]:
    """Hold one named lock of the laboratory against all other processes; the kernel drops it when a holder dies."""
    with (lab_dir() / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
