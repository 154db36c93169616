"""Restore as packs are thawed: write what can be read by now, and the rest when called again.

The images grow under their temporary names and are named when nothing is left, as those of any restore. A pack whose
bytes are written is needed no more: that its thaw ends then, or while others are read, costs no second one. A kill
between the last renames loses what was written, as it does of any restore.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vmcellar.errors import IntegrityError, UsageError
from vmcellar.folders import sync_folder
from vmcellar.memory import keep_freed_memory
from vmcellar.progress import CancelToken, ProgressSink, no_progress
from vmcellar.restore.begun import RECORD, Begun, Part, begun_in, load, request_of
from vmcellar.restore.fetch import Fetcher, Moved
from vmcellar.restore.journal import JOURNAL, partial
from vmcellar.restore.plan import WINDOW, Resolver, Window, chosen_disks, chunk_ids, survey
from vmcellar.restore.qcow2 import UsedClusters
from vmcellar.restore.report import RestoreTarget
from vmcellar.restore.restore import Job, check_space, held_folder, write_file
from vmcellar.restore.targets import ImageTarget, open_target
from vmcellar.restore.thaw import asleep
from vmcellar.tiers.base import ArchivedError

if TYPE_CHECKING:
    from vmcellar.repository.points import Artifact, DiskRecord, RestorePoint
    from vmcellar.repository.repository import Repository
    from vmcellar.restore.plan import RestorePlan
    from vmcellar.restore.report import RestoreReport


@dataclass(frozen=True, slots=True)
class Waiting:
    """A restore that goes on when called again: the packs that are asleep of those it needs, none when it only has to
    be finished; bytes of disk that are written, and all that will be.
    """

    point: str
    vm: str
    directory: Path
    asleep: tuple[str, ...]
    written: int
    data: int


def restore_readable(
    repository: Repository,
    point: RestorePoint,
    target: RestoreTarget,
    progress: ProgressSink = no_progress,
    cancel: CancelToken | None = None,
) -> RestoreReport | Waiting:
    """Write what of `point` can be read by now into `target.directory`, and finish the restore when that is all.

    Errors as those of `restore_point`, but that packs are asleep, or fall asleep meanwhile, is none. What was written
    stays in any case, also after an error or a kill, and the same call goes on with it; PermanentError for a folder in
    which another restore has begun. UsageError with `best_effort`: what sleeps is not lost.
    """
    with _working(repository, point, target, progress, cancel) as work:
        waiting = work.write()
        return waiting if work.begun.needed else work.finish()


def write_readable(
    repository: Repository,
    point: RestorePoint,
    target: RestoreTarget,
    progress: ProgressSink = no_progress,
    cancel: CancelToken | None = None,
) -> Waiting:
    """The same, but the images get no names, also when nothing is left to be written."""
    with _working(repository, point, target, progress, cancel) as work:
        return work.write()


def rest_of(
    repository: Repository, point: RestorePoint, folder: Path, plan: RestorePlan, cancel: CancelToken
) -> RestorePlan | None:
    """`plan` with those packs alone of which a restore of `point` into `folder` has something left, as its chunks lie
    now; None when none has begun there. Writes nothing. PermanentError when that of another point has begun there.
    """
    begun = begun_in(folder, point.id)
    if begun is None:
        return None
    target = RestoreTarget(folder, begun.request["format"], tuple(begun.request["disks"]))
    disks = chosen_disks(point, target.disks)
    job = Job(repository, point, target, disks)
    for disk, inode in list(begun.images.items()):
        if inode not in _inodes(job.images[disk]):
            begun.forget(disk)
    _locate_left(begun, job, Resolver(repository, point, best_effort=False, cancel=cancel))
    needed = set(begun.needed)
    return replace(plan, keys=tuple(key for key in plan.keys if key in needed))


def _inodes(path: Path) -> set[int]:
    """Of the file, and of what it is called until it is whole."""
    return {each.stat().st_ino for each in (path, partial(path)) if each.exists()}


def _locate_left(begun: Begun, job: Job, resolver: Resolver) -> None:
    """Have the record name the packs of what is left as they are now."""
    for disk in job.disks:
        for window in resolver.windows(disk):
            begun.part(window.target, _start(window), _packs(window))
    for artifact in job.point.artifacts:
        if not _is_written(begun, job, artifact):
            found = job.repository.index.locate([bytes.fromhex(chunk) for chunk in artifact.chunks])
            begun.files[artifact.name] = sorted({each.pack.key for each in found.values()})


def _is_written(begun: Begun, job: Job, artifact: Artifact) -> bool:
    path = job.artifacts[artifact.name]
    sizes = {each.stat().st_size for each in (path, partial(path)) if each.exists()}
    return begun.files.get(artifact.name) == [] and artifact.size in sizes


@contextmanager
def _working(
    repository: Repository,
    point: RestorePoint,
    target: RestoreTarget,
    progress: ProgressSink,
    cancel: CancelToken | None,
) -> Iterator[_Work]:
    if target.best_effort:
        raise UsageError("--readable and --best-effort were both given", hint="thaw all of it first, or leave one out")
    keep_freed_memory()
    with held_folder(target.directory), repository.reading(f"restore {point.vm}"):
        yield _Work(repository, point, target, progress, cancel or CancelToken())


class _Work:
    """One call, in one locked folder."""

    def __init__(
        self,
        repository: Repository,
        point: RestorePoint,
        target: RestoreTarget,
        progress: ProgressSink,
        cancel: CancelToken,
    ) -> None:
        self._started = time.monotonic()
        self._repository, self._point, self._target = repository, point, target
        self._progress, self._cancel = progress, cancel
        self._disks = chosen_disks(point, target.disks)
        self._job = Job(repository, point, target, self._disks)
        self._resolver = Resolver(repository, point, best_effort=False, cancel=cancel)
        begun = load(target.directory, point, target)
        self._named = begun is not None and self._all_named(begun)
        if not self._named:
            self._job.refuse_existing(goes_on=begun is not None)
        self._plan, self._used = survey(repository, point, target.disks, False, cancel, lambda _: target.cluster)
        if begun is None:
            all_of_it = sum(disk.size for disk in self._disks)
            check_space(target.directory, all_of_it if target.image().takes_all else self._plan.data)
        self.begun = begun or Begun(request_of(point, target))

    def write(self) -> Waiting:
        """Write what can be read now."""
        if not self._named:
            with self._images() as images:
                self._renew()
                self._write(images)
            self._write_files()
        sleeping = tuple(sorted(asleep(self._repository, self.begun.needed)))
        folder, written = self._target.directory, sum(self.begun.written(disk.target) for disk in self._disks)
        return Waiting(self._point.id, self._point.vm, folder, sleeping, written, self._plan.data)

    def finish(self) -> RestoreReport:
        """Nothing is left: make the images whole and name everything. IntegrityError when the record tells less than
        all that the point has.
        """
        moved = {disk.target: Moved(0, self.begun.written(disk.target)) for disk in self._disks}
        if self._named:
            sync_folder(self._target.directory)
            (self._target.directory / JOURNAL).unlink(missing_ok=True)
            report = self._job.report(self.begun.files, moved, self.begun.read, (), self._started)
        else:
            with self._images() as images:
                self._refuse_gaps()
                for image in images.values():
                    image.finish()
            files = {name: partial(self._job.artifacts[name]).read_bytes() for name in self.begun.files}
            report = self._job.name_all(files, moved, self.begun.read, (), self._started)
        (self._target.directory / RECORD).unlink()
        return report

    def _all_named(self, begun: Begun) -> bool:
        """Whether a call before this one was killed when only the record was left to be removed."""
        paths = (*self._job.images.values(), *self._job.artifacts.values())
        return all(path.exists() and not partial(path).exists() for path in paths) and all(
            path.stat().st_ino == begun.images.get(disk) for disk, path in self._job.images.items()
        )

    def _refuse_gaps(self) -> None:
        """What nobody wrote would read as zero."""
        for disk in self._plan.disks:
            written = self.begun.written(disk.target)
            if written != disk.data or self.begun.needed:
                raise IntegrityError(
                    f"{self._point.vm}: disk {disk.target}: {written} of {disk.data} bytes are written by the record "
                    f"{self._target.directory / RECORD}, and {len(self.begun.needed)} packs are left",
                    hint="remove the folder and restore again, and report this as a bug",
                )

    @contextmanager
    def _images(self) -> Iterator[dict[str, ImageTarget]]:
        """Each image, open, and in the record; they stay as they are at the end."""
        images: dict[str, ImageTarget] = {}
        try:
            for disk in self._disks:
                images[disk.target] = self._open(disk, self._used[disk.target])
            self.begun.save(self._target.directory)
            yield images
        finally:
            for image in images.values():
                image.leave()

    def _open(self, disk: DiskRecord, used: UsedClusters) -> ImageTarget:
        """The image that has begun, or a new one of which all is left."""
        begun, path = self.begun, partial(self._job.images[disk.target])
        there = path.exists() and path.stat().st_ino == begun.images.get(disk.target)
        if not there and disk.target in begun.images:  # a new image may get the same inode
            begun.forget(disk.target)
            begun.save(self._target.directory)
        image = open_target(self._target.image(), path, used, begun=there)
        if not there:
            image.sync()  # its length: a record must not outlive it
            begun.images[disk.target] = path.stat().st_ino
        return image

    def _part_of(self, window: Window) -> Part:
        return self.begun.part(window.target, _start(window), _packs(window))

    def _renew(self) -> None:
        """Have the record name the packs of what is left as they are now."""
        _locate_left(self.begun, self._job, self._resolver)
        self.begun.save(self._target.directory)

    def _write_files(self) -> None:
        """What lies beside the images: large ones lie in packs that may sleep, too."""
        for artifact in self._point.artifacts:
            if _is_written(self.begun, self._job, artifact):
                continue
            if not asleep(self._repository, self.begun.files[artifact.name]):
                write_file(partial(self._job.artifacts[artifact.name]), self._repository.artifact(artifact))
                self.begun.files[artifact.name] = []
        self.begun.save(self._target.directory)

    def _write(self, images: Mapping[str, ImageTarget]) -> None:
        sleeping = asleep(self._repository, self.begun.needed)
        with Fetcher(self._repository, self._progress, self._cancel) as fetcher:
            for disk in self._disks:
                for window in self._resolver.windows(disk):
                    while not self._write_window(window, images[disk.target], fetcher, sleeping):
                        pass

    def _write_window(self, window: Window, image: ImageTarget, fetcher: Fetcher, sleeping: set[str]) -> bool:
        """Write what is left of a window and awake, durable before the record says so. False when packs fell asleep
        meanwhile, which `sleeping` has then.
        """
        part = self._part_of(window)
        todo = set(part.left)
        if not todo - sleeping:
            return True
        try:
            moved = fetcher.restore(_part(window, todo - sleeping), image, self._resolver)
        except ArchivedError:
            more = asleep(self._repository, sorted(todo - sleeping))
            if not more:
                raise
            sleeping |= more
            return False
        image.sync()
        part.left = sorted(todo & sleeping)
        part.written += moved.written
        self.begun.read += moved.read
        self.begun.save(self._target.directory)
        return True


def _start(window: Window) -> int:
    return int(window.rows["offset"][0]) // WINDOW * WINDOW


def _packs(window: Window) -> list[str]:
    """The pack of each row."""
    return [window.locations[chunk].pack.key for chunk in chunk_ids(window.rows)]


def _part(window: Window, packs: set[str]) -> Window:
    """What of a window lies in these packs."""
    chosen = [key in packs for key in _packs(window)]
    return Window(window.target, window.rows[np.array(chosen)], window.locations)
