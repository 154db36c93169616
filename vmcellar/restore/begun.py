"""What is left of a restore that goes on as its packs are thawed: a record beside the images it has begun.

By disk and window, the packs that are not written yet. The record is replaced only after what it says was written is
durable, so after a crash at any instant at most one window is written once more, with the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmcellar.errors import PermanentError
from vmcellar.restore.journal import partial, sync_folder
from vmcellar.restore.targets import write_error

if TYPE_CHECKING:
    from vmcellar.repository.points import RestorePoint
    from vmcellar.restore.report import RestoreTarget

RECORD = ".vmcellar-begun.json"


@dataclass
class Begun:
    """`request` is what was asked for, `images` has the inode of each image by its disk; `written` and `read` are bytes
    so far. `left`, by disk and first byte of the window, and `files`, by name: keys of packs; none when it is written.
    """

    request: dict[str, Any]
    images: dict[str, int] = field(default_factory=dict)
    left: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)
    read: int = 0

    def todo(self, disk: str, start: int) -> list[str]:
        """The packs of a window that are not written yet."""
        return self.left[disk].get(str(start), [])

    def leave(self, disk: str, start: int, packs: Iterable[str]) -> None:
        """These are left of a window."""
        self.left[disk][str(start)] = sorted(packs)

    @property
    def needed(self) -> list[str]:
        """Every pack of which something is left."""
        parts = [keys for windows in self.left.values() for keys in windows.values()]
        return sorted({key for keys in (*parts, *self.files.values()) for key in keys})

    def save(self, folder: Path) -> None:
        """Replace the record, durably."""
        path = folder / RECORD
        try:
            with partial(path).open("w", encoding="utf-8") as file:
                json.dump(asdict(self), file)
                file.flush()
                os.fsync(file.fileno())
            partial(path).rename(path)
            sync_folder(folder)
        except OSError as error:
            raise write_error(path, error) from error


def has_begun(folder: Path) -> bool:
    """Whether a restore into this folder waits to go on."""
    return (folder / RECORD).exists()


def needed_by(folder: Path, point: str) -> list[str] | None:
    """The packs that a restore of `point` into this folder still needs; None when none has begun there. PermanentError
    when that of another point has.
    """
    found = _read(folder)
    if found is None:
        return None
    _check(folder, found, found.request.get("point") == point)
    return found.needed


def load(folder: Path, point: RestorePoint, target: RestoreTarget) -> Begun | None:
    """The record of a folder, None when there is none; PermanentError when it is of another request or unreadable."""
    found = _read(folder)
    if found is not None:
        _check(folder, found, found.request == request_of(point, target))
    return found


def _read(folder: Path) -> Begun | None:
    path = folder / RECORD
    try:
        return Begun(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise PermanentError(f"{path} cannot be read: {error}", hint="restore into another folder") from error


def _check(folder: Path, found: Begun, same: bool) -> None:
    if not same:
        raise PermanentError(
            f"{folder}: another restore has begun there: of point {found.request.get('point')}, "
            f"{found.request.get('format')}",
            hint="restore into another folder, or remove this one to give that restore up",
        )


def request_of(point: RestorePoint, target: RestoreTarget) -> dict[str, Any]:
    """What must be the same for a restore to go on."""
    return {
        "point": point.id,
        "format": target.format,
        "disks": sorted(target.disks),
        "preallocation": target.preallocation,
        "cluster": target.cluster,
    }
