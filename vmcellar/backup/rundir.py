"""The run directory: every durable hand-over of one run, one small file each, so that a dead run can go on.

A file appears by rename after it is whole and on the device, so what is there is true. One process works on a run
at a time (`engine.vm_lock`); threads of it work on different segments, hence different files.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from zipfile import BadZipFile

import numpy as np
from pydantic import ValidationError

from vmcellar.backup.model import from_json, to_json
from vmcellar.errors import PermanentError

T = TypeVar("T")

RUN_FILE = "run.json"
REQUEST_FILE = "request.json"
COMMITTED = "committed.json"
"""There once the commit has looked at its point for the last time: from then on it stays whatever happens."""

NOBODYS_SECONDS = 3600.0
"""A folder without a request is younger than this while its process may still write one."""

_NO_ARRAYS = (OSError, ValueError, EOFError, KeyError, TypeError, RuntimeError, MemoryError, BadZipFile, zlib.error)
"""What numpy and zipfile raise for a damaged file."""

_ONE_PARSER = threading.Lock()
"""numpy parses the header of an array as Python text, and CPython 3.11 counts the depth of that parser once for all
threads: two at once may fail with "AST constructor recursion depth mismatch" (CPython issue 106905)."""


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """One run's folder."""

    path: Path

    @property
    def run_id(self) -> str:
        """The run's id: the folder's name."""
        return self.path.name

    def create(self) -> None:
        """Make the folder, readable by its owner alone: it names VMs and disks."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def save(self, name: str, value: object) -> None:
        """Write `value` as JSON under `name`, durable before it appears."""
        _write_durably(self.path / name, lambda out: _write_bytes(out, to_json(value)))

    def load(self, name: str, cls: type[T]) -> T | None:
        """The value under `name`, or None when there is none or it cannot be read (the stage then runs again)."""
        try:
            return from_json(cls, (self.path / name).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def save_arrays(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Write numpy arrays under `name`, durable before they appear."""
        _write_durably(self.path / name, lambda out: _write_arrays(out, arrays))

    def load_arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays under `name`; PermanentError when they are missing or damaged."""
        try:
            with (self.path / name).open("rb") as file, _ONE_PARSER, np.load(file, allow_pickle=False) as stored:
                return {key: stored[key] for key in stored.files}
        except _NO_ARRAYS as error:
            raise PermanentError(
                f"run {self.run_id}: its file {name} cannot be read: {error}",
                hint="type `vmcellar recover`, then run the backup again",
            ) from error

    def has(self, name: str) -> bool:
        """Whether `name` is there."""
        return (self.path / name).exists()

    def forget(self, name: str) -> None:
        """Remove one hand-over, so that its stage runs again."""
        (self.path / name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder with all in it; harmless when it is gone. Dying in between leaves a run to be cleared."""
        self.empty()
        with suppress(OSError):
            (self.path / REQUEST_FILE).unlink()  # before what says that its point stays
        shutil.rmtree(self.path, ignore_errors=True)

    def empty(self) -> None:
        """Remove all but whose run it was and whether it is over: `recover` finds it, and nothing to go on with."""
        with suppress(OSError):
            for path in self.path.iterdir():
                if path.name not in (REQUEST_FILE, COMMITTED):
                    path.unlink()

    def is_nobodys(self) -> bool:
        """Whether its process died as it made or removed the folder, an hour ago or more: nothing says whose it is."""
        try:
            return not self.has(REQUEST_FILE) and self.path.stat().st_mtime < time.time() - NOBODYS_SECONDS
        except FileNotFoundError:
            return False


def stage_file(target: str, segment: int, stage: str, suffix: str = "json") -> str:
    """The name of a segment's hand-over: `vda.0003.export.json`."""
    return f"{target}.{segment:04d}.{stage}.{suffix}"


def _write_durably(path: Path, write: Callable[[Path], None]) -> None:
    temporary = path.with_name(f".{path.name}.new")
    write(temporary)
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write_bytes(path: Path, data: bytes) -> None:
    with path.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as out:
        np.savez(out, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the keyword allow_pickle for one of them
        out.flush()
        os.fsync(out.fileno())
