"""Leaving out paths of a guest: which clusters a point holds as zero, and what that asks of the next backup.

What is left out is told by libguestfs's appliance on the held instant itself (`guestfiles/places.py`). A point records
it, and the next backup reads all of that which is not left out any more, whatever the change tracker says. On any doubt
the bytes are kept: this never makes a backup fail, and never leaves out more than was named.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from pydantic import TypeAdapter, ValidationError

from vmcellar.backup import ranges
from vmcellar.errors import PermanentError
from vmcellar.guestfiles.inside import sector_sizes
from vmcellar.guestfiles.library import check_installed
from vmcellar.guestfiles.places import LIMIT_SECONDS, Answer, Question
from vmcellar.progress import CancelToken
from vmcellar.repository import left_out
from vmcellar.repository.left_out import LeftOut
from vmcellar.sources.base import Capture, Extent, PreviousDisk, SourceDisk

if TYPE_CHECKING:
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository

NOTHING = LeftOut(())
PROGRAM = ("-m", "vmcellar.guestfiles.places")
_LOOK_SECONDS = 0.2
_SHOWN = 300
_ANSWER = TypeAdapter(Answer)
_QUESTION = TypeAdapter(Question)


@dataclass(frozen=True, slots=True)
class Leaving:
    """What this backup leaves out, what its parent left out, and what the report says of it."""

    now: LeftOut = NOTHING
    before: LeftOut = NOTHING
    warnings: tuple[str, ...] = ()

    def reread(self, target: str) -> list[Extent]:
        """What the parent left out and this backup does not: to be read, whatever the tracker says."""
        back = ranges.minus(self.before.ranges(target), self.now.ranges(target))
        return [Extent(offset, length) for offset, length in back]

    def full(self, target: str, extents: Iterable[Extent]) -> list[Extent]:
        """What a full records: of `extents`, its data, what is not left out. Absent means zero in a new map."""
        return _without(extents, self.now.ranges(target))

    def incremental(self, target: str, extents: Iterable[Extent]) -> list[Extent]:
        """What an incremental records: of `extents` what is not left out, and zero for what is left out from now on."""
        new = ranges.minus(self.now.ranges(target), self.before.ranges(target))
        zero = [Extent(offset, length, zero=True) for offset, length in new]
        kept = _without(extents, self.now.ranges(target))
        return sorted([*kept, *zero], key=lambda extent: extent.offset)

    def marked(self, disks: Iterable[SourceDisk]) -> tuple[SourceDisk, ...]:
        """The disks with the mark of those of which something is left out."""
        return tuple(
            replace(disk, identity=left_out.marked(disk.identity)) if self.now.ranges(disk.target) else disk
            for disk in disks
        )


def _without(extents: Iterable[Extent], left: Sequence[tuple[int, int]]) -> list[Extent]:
    return [
        Extent(offset, length, extent.zero)
        for extent in extents
        for offset, length in ranges.minus([(extent.offset, extent.length)], left)
    ]


def extents(left: LeftOut, target: str) -> list[Extent]:
    """What a point left out: its map says zero there, and the guest says something else, by right."""
    return [Extent(offset, length) for offset, length in left.ranges(target)]


def previous_disks(point: RestorePoint) -> tuple[PreviousDisk, ...]:
    """What a point recorded of its disks, as a source knows them: without the mark, which `before` answers for."""
    return tuple(PreviousDisk(disk.target, left_out.unmarked(disk.identity), disk.size) for disk in point.disks)


def before(repository: Repository, parent: RestorePoint | None, paths: Sequence[str]) -> tuple[LeftOut, str]:
    """What the parent left out, and why all is to be read anew; TransientError while the storage does not answer."""
    if parent is None:
        return NOTHING, ""
    found = left_out.of_point(repository, parent)
    if found is None:
        return NOTHING, f"what point {parent.id} left out of the guest's paths cannot be read"
    if set(found.paths) != set(paths):
        return found, "the paths of the guest that are left out changed"
    return found, ""


def look(capture: Capture, paths: Sequence[str], earlier: LeftOut, cancel: CancelToken) -> Leaving:
    """What is left out at the instant that `capture` holds; nothing, with a warning, where that cannot be told.

    Takes 5 to 60 s when there are paths: an appliance starts. CancelledError when stopped.
    """
    if not paths:
        return Leaving(before=earlier)
    names = ", ".join(paths)
    try:
        answer = _ask(_question(capture, paths), cancel)
        left = _chosen(capture, paths, answer)
    except PermanentError as error:
        why = f"{names}: nothing is left out, all is in this point: {error.message}"
        return Leaving(LeftOut(tuple(paths)), earlier, (why,))
    kept = [f"kept, not left out: {why}" for why in answer.kept]
    if left.bytes:
        mib = left.bytes / (1 << 20)
        kept.insert(0, f"{names}: {mib:.1f} MiB of {answer.files} files are left out: {left_out.MEANING}")
    return Leaving(left, earlier, tuple(kept))


def _chosen(capture: Capture, paths: Sequence[str], answer: Answer) -> LeftOut:
    sizes = {disk.target: disk.size for disk in capture.result.disks}
    if unknown := answer.extents.keys() - sizes:
        raise PermanentError(f"libguestfs told of disks that were not asked about: {', '.join(sorted(unknown))}")
    found = {target: ranges.whole_clusters(each, sizes[target]) for target, each in answer.extents.items()}
    return left_out.of_ranges(paths, {target: each for target, each in found.items() if each})


def _question(capture: Capture, paths: Sequence[str]) -> Question:
    targets = [disk.target for disk in capture.result.disks]
    parts = [urlsplit(capture.uri(target)) for target in targets]
    sockets = {parse_qs(part.query).get("socket", [""])[0] for part in parts if part.scheme == "nbd+unix"}
    if len(sockets) != 1 or any(part.scheme != "nbd+unix" for part in parts):
        raise PermanentError("the VM runs on another host, whose disks libguestfs is not given")
    sizes = sector_sizes(capture.artifacts["domain.xml"].decode())
    return Question(sockets.pop(), {target: sizes.get(target, 512) for target in targets}, tuple(paths))


def _ask(question: Question, cancel: CancelToken) -> Answer:
    """Ask the program in a process group of its own; PermanentError when it fails, or takes too long."""
    check_installed()
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    command = [sys.executable, *PROGRAM]
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as errors:
        given.write(_QUESTION.dump_json(question))
        given.seek(0)
        process = subprocess.Popen(
            command,
            stdin=given,
            stdout=told,
            stderr=errors,
            env={**os.environ, "LC_ALL": "C", "PYTHONPATH": path},
            start_new_session=True,
        )
        try:
            _wait(process, cancel)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        told.seek(0)
        errors.seek(0)
        if process.returncode:
            words = errors.read().decode(errors="replace").strip() or f"ended with {process.returncode}"
            raise PermanentError(f"libguestfs: {words[-_SHOWN:]}")
        try:
            return _ANSWER.validate_json(told.read())
        except ValidationError as error:
            raise PermanentError(f"libguestfs: its answer is not understood: {error.errors()[0]['msg']}") from error


def _wait(process: subprocess.Popen[bytes], cancel: CancelToken) -> None:
    for _ in range(int((LIMIT_SECONDS + 30) / _LOOK_SECONDS)):
        try:
            process.wait(_LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            cancel.check()
        else:
            return
    raise PermanentError(f"libguestfs did not end within {LIMIT_SECONDS} s")
