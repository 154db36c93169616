"""What is left of a restore that goes on as its packs are thawed: a record beside the images it has begun.

By disk and window, the packs that are not written yet. The record is replaced only after what it says was written is
durable, so after a crash at any instant at most one window is written once more, with the same bytes. Packs are named
as the chunks lay when it was written; when they lie elsewhere by now (`Part.located`), all of the window is left.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmcellar.errors import PermanentError
from vmcellar.folders import sync_folder
from vmcellar.restore.journal import partial
from vmcellar.restore.targets import write_error

if TYPE_CHECKING:
    from vmcellar.repository.points import RestorePoint
    from vmcellar.restore.report import RestoreTarget

RECORD = ".vmcellar-begun.json"


@dataclass
class Part:
    """One window: where its chunks lay, as a digest; keys of the packs that are left; bytes written so far."""

    located: str
    left: list[str]
    written: int = 0


@dataclass
class Begun:
    """`request` is what was asked for, `images` has the inode of each image by its disk; `read` are bytes so far.
    `windows` are by disk and first byte; `files`, by name, are keys of packs: none when it is written.
    """

    request: dict[str, Any]
    images: dict[str, int] = field(default_factory=dict)
    windows: dict[str, dict[str, Part]] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)
    read: int = 0

    def part(self, disk: str, start: int, packs: Sequence[str]) -> Part:
        """What is known of the window whose chunks lie in these packs now, chunk by chunk. All of it is left when
        nothing is, or when something of what is left may lie elsewhere than it did.
        """
        located = blake2b("\n".join(packs).encode(), digest_size=16).hexdigest()
        windows = self.windows.setdefault(disk, {})
        found = windows.get(str(start))
        if found is None or (found.left and found.located != located):
            found = windows[str(start)] = Part(located, sorted(set(packs)))
        return found

    def forget(self, disk: str) -> None:
        """The image is gone, or is another."""
        self.images.pop(disk, None)
        self.windows.pop(disk, None)

    def written(self, disk: str) -> int:
        """Bytes of a disk that are written."""
        return sum(part.written for part in self.windows.get(disk, {}).values())

    @property
    def needed(self) -> list[str]:
        """Every pack of which something is left."""
        parts = [part.left for windows in self.windows.values() for part in windows.values()]
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


def begun_in(folder: Path, point: str) -> Begun | None:
    """The record of a restore of `point` into this folder, whatever its other options; None when none has begun there.
    PermanentError when that of another point has.
    """
    found = _read(folder)
    if found is not None:
        _check(folder, found, found.request.get("point") == point)
    return found


def load(folder: Path, point: RestorePoint, target: RestoreTarget) -> Begun | None:
    """The record of a folder, None when there is none; PermanentError when it is of another request or unreadable."""
    found = _read(folder)
    if found is not None:
        _check(folder, found, found.request == request_of(point, target))
    return found


def _read(folder: Path) -> Begun | None:
    path = folder / RECORD
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        windows = {
            disk: {start: Part(**part) for start, part in parts.items()} for disk, parts in fields["windows"].items()
        }
        return Begun(**{**fields, "windows": windows})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
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
