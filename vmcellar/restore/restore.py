"""Restore a point: disks into new image files, and what was captured with them.

Order: everything is resolved and checked; images are written under temporary names and made durable; then all get their
names, domain.xml last. So a folder with domain.xml holds a whole restore. A crash leaves temporary files, which the
next restore into the folder replaces, and in the instant of the renames a journal (vmcellar/restore/journal.py) by
which it knows what to remove: files that are not a restore's own are never touched.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vmcellar.errors import IntegrityError, PermanentError, TransientError, VmcellarError
from vmcellar.folders import sync_folder
from vmcellar.memory import keep_freed_memory
from vmcellar.progress import CancelToken, ProgressSink, no_progress
from vmcellar.repository.read_ahead import at_once
from vmcellar.restore import journal
from vmcellar.restore.begun import has_begun
from vmcellar.restore.fetch import Fetcher, Moved
from vmcellar.restore.journal import JOURNAL, partial
from vmcellar.restore.plan import Resolver, chosen_disks, survey
from vmcellar.restore.qcow2 import UsedClusters
from vmcellar.restore.report import LostRange, RestoredDisk, RestoreReport, RestoreTarget, merge_lost
from vmcellar.restore.targets import open_target, write_error
from vmcellar.restore.thaw import refuse_archived
from vmcellar.tiers.local import make_directory

if TYPE_CHECKING:
    from vmcellar.repository.points import Artifact, DiskRecord, RestorePoint
    from vmcellar.repository.repository import Repository

_log = logging.getLogger(__name__)

DOMAIN_XML = "domain.xml"
LOST_RANGES = "lost-ranges.json"
"""Written beside the images when something was lost: what a file system check in the guest has to look at."""


def restore_point(
    repository: Repository,
    point: RestorePoint,
    target: RestoreTarget,
    progress: ProgressSink = no_progress,
    cancel: CancelToken | None = None,
) -> RestoreReport:
    """Restore `point` into `target.directory`; `progress` counts disk bytes of stage "restore" (zeroes not).

    IntegrityError names disk, offset and pack of what is damaged, PermanentError what exists already or that there
    is no space, ArchivedError what must be thawed first, CancelledError when stopped; then nothing of this restore is
    left. A thaw that ends in the middle is an ArchivedError too: after another one the restore starts again. With
    `best_effort` damage is listed in the report and in lost-ranges.json, and those ranges read as zero.
    """
    keep_freed_memory()
    started = time.monotonic()
    cancel = cancel or CancelToken()
    disks = chosen_disks(point, target.disks)
    image = target.image()
    with held_folder(target.directory), repository.reading(f"restore {point.vm}"):
        job = Job(repository, point, target, disks)
        job.refuse_existing()
        plan, used = survey(repository, point, target.disks, target.best_effort, cancel, lambda _: target.cluster)
        refuse_archived(repository, plan)
        whole = sum(disk.size for disk in disks)
        check_space(target.directory, whole if image.takes_all else plan.data)
        return job.run(used, progress, cancel, started)


class Job:
    """One restore into one locked folder."""

    def __init__(
        self, repository: Repository, point: RestorePoint, target: RestoreTarget, disks: tuple[DiskRecord, ...]
    ) -> None:
        self.repository = repository
        self.point = point
        self._target = target
        self.disks = disks
        self.images = {disk.target: target.directory / f"{disk.target}.{target.format}" for disk in disks}
        self.artifacts = {artifact.name: target.directory / artifact.name for artifact in point.artifacts}

    def refuse_existing(self, *, goes_on: bool = False) -> None:
        """PermanentError when anything that would be written is there already, but for what a killed restore left; or
        when a restore has begun there that waits for a thaw, unless this one `goes_on` with it.
        """
        if has_begun(self._target.directory) and not goes_on:
            raise PermanentError(
                f"{self._target.directory}: a restore has begun there that goes on as packs are thawed",
                hint="repeat the command that began it (--readable), or restore into another folder",
            )
        try:
            for path in journal.clear_unfinished(self._target.directory):
                _log.warning("%s, left by a restore that was killed, is removed", path)
        except OSError as error:
            raise write_error(self._target.directory, error) from error
        for path in (*self.images.values(), *self.artifacts.values(), self._target.directory / LOST_RANGES):
            if path.exists() or path.is_symlink():
                raise PermanentError(f"{path} exists already", hint="restore into an empty or new folder")

    def run(
        self, used: Mapping[str, UsedClusters], progress: ProgressSink, cancel: CancelToken, started: float
    ) -> RestoreReport:
        """Write, make durable, name. On any error nothing of it is left."""
        resolver = Resolver(self.repository, self.point, self._target.best_effort, cancel)
        moved: dict[str, Moved] = {}
        with ExitStack() as undo, Fetcher(self.repository, progress, cancel) as fetcher:
            for disk in self.disks:
                moved[disk.target] = self._restore_disk(disk, used[disk.target], resolver, fetcher, undo)
            contents = self._read_artifacts(resolver)
            cancel.check()
            lost = merge_lost([*resolver.lost, *(item for each in moved.values() for item in each.lost)])
            report = self.name_all(contents, moved, sum(each.read for each in moved.values()), lost, started)
            undo.pop_all()
        return report

    def name_all(
        self,
        contents: Mapping[str, bytes],
        moved: Mapping[str, Moved],
        read: int,
        lost: tuple[LostRange, ...],
        started: float,
    ) -> RestoreReport:
        """Once all images are whole and durable: give everything its name, what lies beside them (`contents`), too.

        On an error nothing has its name, and the images stay as they were.
        """
        with ExitStack() as undo:
            self._publish(contents, lost, undo)
            undo.pop_all()
        return self.report(contents, moved, read, lost, started)

    def report(
        self,
        files: Iterable[str],
        moved: Mapping[str, Moved],
        read: int,
        lost: tuple[LostRange, ...],
        started: float,
    ) -> RestoreReport:
        """What is said of it once everything has its name."""
        return RestoreReport(
            point=self.point.id,
            vm=self.point.vm,
            directory=self._target.directory,
            format=self._target.format,
            disks=tuple(
                RestoredDisk(d.target, self.images[d.target], d.size, moved[d.target].written) for d in self.disks
            ),
            artifacts={name: self.artifacts[name] for name in files},
            lost=lost,
            read=read,
            seconds=time.monotonic() - started,
        )

    def _restore_disk(
        self, disk: DiskRecord, used: UsedClusters, resolver: Resolver, fetcher: Fetcher, undo: ExitStack
    ) -> Moved:
        image = self.images[disk.target]
        target = open_target(self._target.image(), partial(image), used)
        undo.callback(partial(image).unlink, missing_ok=True)
        moved = Moved()
        try:
            for window in resolver.windows(disk):
                moved += fetcher.restore(window, target, resolver)
            target.finish()
        finally:
            target.abort()
        return moved

    def _read_artifacts(self, resolver: Resolver) -> dict[str, bytes]:
        """The bytes of all artifacts that can be read: megabytes at most, a kernel and its initrd."""
        contents = {}
        artifacts, near = self.point.artifacts, self.repository.tier.kind == "local"
        reads = map(self._read_artifact, artifacts) if near else iter(at_once(self._read_artifact, artifacts))
        for artifact, read in zip(artifacts, reads, strict=True):
            if isinstance(read, bytes):
                contents[artifact.name] = read
            else:
                resolver.lose_artifact(artifact, read)
        return contents

    def _read_artifact(self, artifact: Artifact) -> bytes | VmcellarError:
        try:
            return self.repository.artifact(artifact)
        except (IntegrityError, PermanentError, TransientError) as error:
            return error

    def _publish(self, contents: Mapping[str, bytes], lost: tuple[LostRange, ...], undo: ExitStack) -> None:
        """Give everything its name, what says that the restore is whole last, and make the names durable."""
        folder = self._target.directory
        files = {self.artifacts[name]: data for name, data in contents.items()}
        if lost:
            files[folder / LOST_RANGES] = json.dumps([asdict(item) for item in lost], indent=1).encode()
        for path, data in files.items():
            undo.callback(partial(path).unlink, missing_ok=True)
            write_file(partial(path), data)
        self._write_journal([*self.images.values(), *files], undo)
        last = self.artifacts.get(DOMAIN_XML)
        for path in sorted([*self.images.values(), *files], key=lambda path: path == last):
            undo.callback(path.unlink, missing_ok=True)
            partial(path).rename(path)
        sync_folder(folder)
        (folder / JOURNAL).unlink(missing_ok=True)

    def _write_journal(self, files: list[Path], undo: ExitStack) -> None:
        path = self._target.directory / JOURNAL
        undo.callback(path.unlink, missing_ok=True)
        undo.callback(partial(path).unlink, missing_ok=True)
        write_file(partial(path), journal.text({each.name: partial(each) for each in files}))
        partial(path).rename(path)
        sync_folder(path.parent)


@contextmanager
def held_folder(path: Path) -> Iterator[None]:
    """The folder, made if need be and locked against other restores; a new one goes again when the restore fails."""
    try:
        made = not path.exists()
        make_directory(path, mode=0o711)
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise PermanentError(f"cannot restore into {path}: {error.strerror}", hint="name another folder") from error
    try:
        _lock(handle, path)
        yield
    except BaseException:
        if made and not any(path.iterdir()):
            path.rmdir()
        raise
    finally:
        os.close(handle)


def _lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PermanentError(f"another restore into {path} is running", hint="wait, or name another folder") from error


def check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise PermanentError(
            f"no space to restore into {folder}: {needed >> 20} MiB are needed, {free >> 20} MiB are free",
            hint="free space there or restore to another folder; nothing was written",
        )


def write_file(path: Path, data: bytes) -> None:
    try:
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise write_error(path, error) from error
