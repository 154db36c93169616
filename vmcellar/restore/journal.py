"""What a restore is about to name, written down before the first rename: so that the next one knows what is its own.

A file is the restore's own if inode, size and time of change are still those that were written down: whoever wrote to
it, or put another in its place, has made it his.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from vmcellar.folders import sync_folder

JOURNAL = ".vmcellar-restore.json"


def text(partials: Mapping[str, Path]) -> bytes:
    """The journal of these files, which are whole and durable under temporary names; by the names they will get."""
    return json.dumps({name: _mark(path) for name, path in partials.items()}, indent=1).encode()


def clear_unfinished(folder: Path) -> list[Path]:
    """Remove what a restore that was killed between its renames left in this locked folder, and name it.

    Nothing goes unless a file still waits under its temporary name (else the restore is whole), and all that have their
    names are its own. A journal that cannot be read clears nothing. Raises OSError when a file cannot be removed.
    """
    journal = folder / JOURNAL
    try:
        marks = {folder / name: mark for name, mark in json.loads(journal.read_text()).items()}
        named = [path for path in marks if path.parent == folder and os.path.lexists(path)]
        unfinished = any(_is(partial(path), mark) for path, mark in marks.items())
        own = named if unfinished and all(_is(path, marks[path]) for path in named) else []
    except (OSError, ValueError, AttributeError):
        return []
    for path in own:
        path.unlink(missing_ok=True)
    sync_folder(folder)
    journal.unlink(missing_ok=True)
    return own


def partial(path: Path) -> Path:
    """The name under which a file grows."""
    return path.with_name(f".{path.name}.partial")


def _is(path: Path, mark: object) -> bool:
    with suppress(FileNotFoundError):
        return _mark(path) == mark
    return False


def _mark(path: Path) -> list[int]:
    stat = path.lstat()
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns]
