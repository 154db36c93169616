"""A device that forgets: what was not made durable by fsync is undone after a kill, as a power cut may do.

The worst that a file system may do is played: every entry of a folder (link, rename, unlink, mkdir) that no fsync of
that folder followed is undone, deleted files come back, and files whose bytes were never synced are empty.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]
_link, _write, _stat = os.link, os.write, os.stat


class Journal:
    """What a process did to names and bytes, written so that a kill does not lose it. One per process."""

    def __init__(self, folder: Path) -> None:
        """`folder` must be on the same file system, and outlives the process."""
        self._folder = folder
        self._file = os.open(folder / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._kept = 0

    def before(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Record:
        """What the call is about to do; keeps a file whose name it takes."""
        if name in ("fsync", "fdatasync"):
            found = os.fstat(arguments[0])
            return {"op": "fsync", "ino": found.st_ino}
        path = _path(arguments[0], options)
        record: Record = {"op": name, "path": str(path)}
        if name in ("link", "rename", "replace"):
            record["to"] = str(_path(arguments[1], {}))
        lost = Path(record.get("to", path)) if name != "link" else None
        if lost is not None and lost.is_file():
            self._kept += 1
            kept = str(self._folder / f"kept-{self._kept}")
            with suppress(OSError):  # it lies elsewhere, as a temporary file of Python's own may
                _link(lost, kept)
                record["kept"] = kept
        record["folder"] = _stat(Path(record.get("to", path)).parent).st_ino
        return record

    def done(self, record: Record) -> None:
        """The call succeeded."""
        _write(self._file, json.dumps(record).encode() + b"\n")


def _path(target: Any, options: dict[str, Any]) -> Path:
    folder = options.get("dir_fd")
    name = os.fsdecode(target)
    return Path(name) if folder is None else Path(f"/proc/self/fd/{folder}").resolve() / name


@dataclass
class _Replay:
    """Goes through a journal: which steps are pending, and whose bytes are synced."""

    pending: list[Record] = field(default_factory=list)
    synced: set[int] = field(default_factory=set)

    def take(self, record: Record) -> None:
        if record["op"] == "fsync":
            self.synced.add(record["ino"])
            self.pending = [step for step in self.pending if step["folder"] != record["ino"]]
        else:
            self.pending.append(record)


def inodes(folder: Path) -> set[int]:
    """Of all files, which are taken as durable."""
    return {path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


def forget(trial: Path, journal: Path, durable: set[int], is_cache: Callable[[Path], bool]) -> None:
    """Undo what the journal's process had not made durable. Files of a cache stay as they are."""
    replay = _Replay()
    for line in (journal / "journal").read_text().splitlines():
        replay.take(json.loads(line))
    back: set[int] = set()
    for step in reversed(replay.pending):
        _undo(step, back)
    for path in trial.rglob("*"):
        if path.is_dir() and path.stat().st_ino in back:
            os.utime(path, (0, 0))  # as it was: its time of change was not durable either
    for path in sorted(trial.rglob("*")):
        if path.is_file() and not is_cache(path) and path.stat().st_ino not in durable | replay.synced:
            os.truncate(path, 0)


def _undo(step: Record, back: set[int]) -> None:
    """Undo one step; notes in `back` the folders that are there again, or hold again what they held."""
    path, to = Path(step["path"]), Path(step.get("to", ""))
    if step["op"] == "link":
        to.unlink(missing_ok=True)
    elif step["op"] in ("rename", "replace"):
        if to.exists():
            to.rename(path)
        if "kept" in step:
            _put_back(Path(step["kept"]), to)
    elif step["op"] in ("unlink", "remove") and "kept" in step:
        _put_back(Path(step["kept"]), path)
        if path.parent.is_dir():
            back.add(path.parent.stat().st_ino)
    elif step["op"] == "mkdir":
        shutil.rmtree(path, ignore_errors=True)
    elif step["op"] == "rmdir" and path.parent.is_dir():
        path.mkdir(exist_ok=True)
        back.add(path.stat().st_ino)


def _put_back(kept: Path, path: Path) -> None:
    if path.parent.is_dir() and not path.exists():
        _link(kept, path)
