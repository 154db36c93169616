"""The journal of VMs that run from the repository: one small file per VM in the state directory.

It is durable before anything is made, and goes when the VM needs the repository no more, or is gone. The file is also
the lock: one process at a time works on a VM.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from vmcellar.errors import PermanentError
from vmcellar.folders import fitting, sync_folder

Phase = Literal["preparing", "defined", "started"]
"""How far it got. Up to "defined" no guest ever ran on the images: they hold nothing. From "started" on they may."""


@dataclass(frozen=True, slots=True)
class Boot:
    """A VM `name` that was begun from `point` of `vm`; its images lie in `folder`, `begun` is seconds since epoch."""

    name: str
    uuid: str
    point: str
    vm: str
    folder: str
    targets: tuple[str, ...]
    phase: Phase
    begun: float

    def overlay(self, target: str) -> Path:
        """The image that the VM writes to and that ends up holding all of the disk."""
        return Path(self.folder) / f"{target}.qcow2"

    @property
    def socket(self) -> Path:
        """Where the point's disks are served."""
        return Path(self.folder) / ".boot.sock"


class BootJournal:
    """One VM's entry, held by this process."""

    def __init__(self, path: Path, handle: int, entry: Boot) -> None:
        self.entry = entry
        self._path = path
        self._handle = handle

    def reach(self, phase: Phase) -> None:
        """Say durably that the next phase begins."""
        self.entry = replace(self.entry, phase=phase)
        self.write()

    def write(self) -> None:
        """Make the entry durable. A new file takes the name of the old one, so there is always a whole entry."""
        new = self._path.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(asdict(self.entry), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.rename(self._path)
        sync_folder(self._path.parent)

    def end(self) -> None:
        """The VM needs the repository no more, or is gone."""
        self._path.unlink()
        sync_folder(self._path.parent)


@contextmanager
def begin(state: Path, entry: Boot) -> Iterator[BootJournal]:
    """A new entry; PermanentError when there is one for that name."""
    with _locked(state, entry.name) as (path, handle):
        if path.exists():
            raise PermanentError(
                f"a VM {entry.name} was begun from the repository before and is not finished",
                hint=f"vmcellar boot --finish {entry.name}, or --abort {entry.name}, or choose another --name",
            )
        journal = BootJournal(path, handle, entry)
        journal.write()
        yield journal


@contextmanager
def go_on(state: Path, name: str) -> Iterator[BootJournal]:
    """The entry of that name; PermanentError when there is none, or when another process works on it."""
    with _locked(state, name) as (path, handle):
        if not path.exists():
            raise PermanentError(f"no VM {name} runs from the repository", hint="`vmcellar boot --status` shows them")
        yield BootJournal(path, handle, _read(path))


def all_boots(state: Path) -> list[Boot]:
    """All entries, by name."""
    return [_read(path) for path in sorted((state / "boots").glob("*.json"))]


def is_served(state: Path, name: str) -> bool:
    """Whether a process works on that VM right now."""
    try:
        with _locked(state, name):
            return False
    except PermanentError:
        return True


def new_entry(name: str, uuid: str, point: str, vm: str, folder: Path, targets: tuple[str, ...]) -> Boot:
    """An entry of a VM of which nothing is there yet."""
    return Boot(name, uuid, point, vm, str(folder), targets, "preparing", time.time())


@contextmanager
def _locked(state: Path, name: str) -> Iterator[tuple[Path, int]]:
    """The path of an entry under the lock of that name. The lock file stays; it is empty."""
    folder = state / "boots"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{fitting(quote(name, safe=''))}.json"
    handle = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermanentError(
                f"another process works on VM {name}", hint="wait for it, or end it: nothing is lost by that"
            ) from error
        yield path, handle
    finally:
        os.close(handle)


def _read(path: Path) -> Boot:
    entry = json.loads(path.read_bytes())
    return Boot(**{**entry, "targets": tuple(entry["targets"])})
