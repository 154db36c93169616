"""Restore disks onto disks that are there, writing only what differs.

Order: everything that the point needs is resolved and checked, the disks are found unused and of the right size, and
only then do journal entries say that all of them are in work, until the last is whole: disks of two instants are as
useless together as a half one. A kill in between is finished by the same command, since it compares everything again.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from vmcellar.errors import IntegrityError, PermanentError, UsageError, VmcellarError
from vmcellar.memory import keep_freed_memory
from vmcellar.progress import CancelToken, ProgressSink, no_progress
from vmcellar.repository import uses
from vmcellar.restore.destinations import Destination
from vmcellar.restore.differ import Comparer, DifferentialTarget
from vmcellar.restore.fetch import Fetcher
from vmcellar.restore.image_server import ImageServer
from vmcellar.restore.in_use import Machines, claimed, refuse_used, same_file
from vmcellar.restore.noted import refuse_noted
from vmcellar.restore.plan import Resolver, survey
from vmcellar.restore.thaw import refuse_archived
from vmcellar.restore.unfinished import Journal, Unfinished, journal

if TYPE_CHECKING:
    from vmcellar.repository.points import DiskRecord, RestorePoint
    from vmcellar.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class OverwrittenDisk:
    """One disk that is now the point's: of `size` bytes all were compared, `written` and `zeroed` are what differed.

    `beyond` are the bytes of a larger block device or RBD image behind the disk, which were left as they are.
    """

    target: str
    onto: str
    size: int
    written: int
    zeroed: int
    beyond: int
    went_on: bool


@dataclass(frozen=True, slots=True)
class OntoReport:
    """A finished differential restore. `read` are bytes read from the repository."""

    point: str
    vm: str
    disks: tuple[OverwrittenDisk, ...]
    read: int
    seconds: float


@dataclass(slots=True)
class _Opened:
    """One pair of a disk of the point and the open disk that it goes onto."""

    record: DiskRecord
    onto: Destination
    image: ImageServer
    journal: Journal


def restore_onto(
    repository: Repository,
    point: RestorePoint,
    pairs: dict[str, Destination],
    state: Path,
    machines: Machines,
    progress: ProgressSink = no_progress,
    cancel: CancelToken | None = None,
) -> OntoReport:
    """Make each destination equal to the point's disk of that target. The journal is kept in `state`.

    Before anything is written: IntegrityError for what of the point is damaged, PermanentError for a disk that is in
    use or of the wrong size. After that any error or a stop leaves the disk half, and the hint says how to finish it.
    """
    keep_freed_memory()
    started = time.monotonic()
    cancel = cancel or CancelToken()
    records = [point.disk(target) for target in pairs]
    _refuse_twice(pairs)
    with repository.reading(f"restore {point.vm}"), ExitStack() as stack:
        refuse_archived(repository, survey(repository, point, list(pairs), best_effort=False, cancel=cancel)[0])
        refuse_noted(repository, point, list(pairs), cancel)
        opened = [_open(stack, record, pairs[record.target], state, machines) for record in records]
        resolver = Resolver(repository, point, best_effort=False, cancel=cancel)
        work = _Work(repository, point, resolver, progress, cancel)
        done = work.run(opened)
    uses.note(repository, point.id)
    disks = tuple(disk for disk, _ in done)
    return OntoReport(point.id, point.vm, disks, sum(read for _, read in done), time.monotonic() - started)


def _refuse_twice(pairs: dict[str, Destination]) -> None:
    for (target, onto), (other, second) in combinations(pairs.items(), 2):
        paths = onto.path, second.path
        if onto.identity == second.identity or (paths[0] and paths[1] and same_file(paths[0], paths[1])):
            raise UsageError(
                f"{second.name} was named for {target} and for {other}", hint="name one disk for each, not one twice"
            )


def _open(stack: ExitStack, record: DiskRecord, onto: Destination, state: Path, machines: Machines) -> _Opened:
    """Everything that refuses; nothing of the disk is written here."""
    held = stack.enter_context(journal(state, onto.identity, onto.name))
    refuse_used(onto, machines)
    stack.enter_context(claimed(onto))
    image = stack.enter_context(ImageServer(onto.name, onto.options(), held.lock))
    check_size(record, onto, image.size)
    return _Opened(record, onto, image, held)


def check_size(record: DiskRecord, onto: Destination, size: int) -> None:
    """An image must be as large as the disk; what is cut from a pool in units of its own may be larger."""
    if size == record.size or (size > record.size and onto.kind != "file"):
        return
    raise PermanentError(
        f"{onto.name} has {size} bytes, disk {record.target} of the point has {record.size}: it does not fit",
        hint=f"`qemu-img resize {onto.name} {record.size}` (with --shrink to make it smaller); nothing was written",
    )


class _Work:
    """What all disks of one restore share."""

    def __init__(
        self,
        repository: Repository,
        point: RestorePoint,
        resolver: Resolver,
        progress: ProgressSink,
        cancel: CancelToken,
    ) -> None:
        self._repository = repository
        self._point = point
        self._resolver = resolver
        self._progress = progress
        self._cancel = cancel

    def run(self, opened: list[_Opened]) -> list[tuple[OverwrittenDisk, int]]:
        """Overwrite the disks one after the other; what came of each, beside the bytes read from the repository."""
        for one in opened:
            target = one.record.target
            one.journal.begin(Unfinished(one.onto.name, self._point.id, self._point.vm, target, time.time()))
        try:
            done = [self._run(one) for one in opened]
        except VmcellarError as error:
            raise type(error)(error.message, hint=_half([one.onto.name for one in opened], error)) from error
        for one in opened:
            one.journal.end()
        return done

    def _run(self, opened: _Opened) -> tuple[OverwrittenDisk, int]:
        record, onto = opened.record, opened.onto
        target = DifferentialTarget(opened.image)
        read = self._overwrite(record, target)
        target.finish()
        beyond = opened.image.size - record.size
        went_on = opened.journal.before is not None
        return OverwrittenDisk(
            record.target, onto.name, record.size, target.written, target.zeroed, beyond, went_on
        ), read

    def _overwrite(self, record: DiskRecord, target: DifferentialTarget) -> int:
        read = 0
        with (
            Comparer(self._repository.keyring, self._cancel) as comparer,
            Fetcher(self._repository, self._progress, self._cancel) as fetcher,
        ):
            for start, end, window in self._resolver.spans(record):
                target.look_at(start, end)
                comparer.zero_gaps(window, target, start, end)
                wanted = comparer.different(window, target)
                self._progress("restore", int(window.rows["length"].sum()) - int(wanted.rows["length"].sum()))
                read += fetcher.restore(wanted, target, self._resolver).read
        return read


def _half(names: list[str], error: VmcellarError) -> str:
    """What to do about disks that are half."""
    them = "it" if len(names) == 1 else "them"
    how = f"the same command, typed again, finishes {them}"
    if isinstance(error, IntegrityError):
        how = f"{how} once the damage is mended, and a restore of another point overwrites {them}"
    finish = f"{', '.join(names)}: half old and half new now, do not use {them}; {how}"
    return f"{error.hint}; {finish}" if error.hint else finish
