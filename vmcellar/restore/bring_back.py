"""A restore, and the definition of the VM where one is wanted. Needs libvirt only for the latter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmcellar.errors import PermanentError, TransientError
from vmcellar.progress import CancelToken, ProgressSink
from vmcellar.repository import uses
from vmcellar.restore.as_thawed import Waiting, restore_readable
from vmcellar.restore.begun import has_begun
from vmcellar.restore.domain_xml import KEPT, TPM_ARCHIVE, Networks
from vmcellar.restore.qcow2 import CLUSTER
from vmcellar.restore.report import RestoreReport, RestoreTarget
from vmcellar.restore.restore import DOMAIN_XML, restore_point
from vmcellar.restore.targets import ImageFormat, Preallocation
from vmcellar.sources.libvirt_uri import refuse_other_host
from vmcellar.tiers.base import ArchivedError

if TYPE_CHECKING:
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository
    from vmcellar.restore.define import DefinedDomain
    from vmcellar.sources.libvirt_connection import Connection


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for; `define` is the new VM's name."""

    folder: Path
    image_format: ImageFormat
    disks: tuple[str, ...]
    best_effort: bool
    define: str | None
    preallocation: Preallocation = "off"
    cluster: int = CLUSTER
    networks: Networks = KEPT

    def target(self) -> RestoreTarget:
        """The same for the restore of the disks."""
        return RestoreTarget(
            self.folder, self.image_format, self.disks, self.best_effort, self.preallocation, self.cluster
        )


@dataclass(frozen=True, slots=True)
class Done:
    """What came of it; `defined` is the new VM."""

    report: RestoreReport
    defined: DefinedDomain | None


def run_restore(
    repository: Repository,
    point: RestorePoint,
    wanted: Wanted,
    uri: str,
    progress: ProgressSink,
    cancel: CancelToken,
) -> Done:
    """Restore, then define. A name that is taken is refused before anything is written. A restore that has begun in the
    folder (`run_as_thawed`) is gone on with, and ArchivedError raised if packs that it needs are asleep.
    """
    if has_begun(wanted.folder) and not wanted.best_effort:
        done = run_as_thawed(repository, point, wanted, uri, progress, cancel)
        if isinstance(done, Done):
            return done
        raise ArchivedError(
            f"{point.vm}: {len(done.asleep)} packs of point {point.id} must be thawed first, such as {done.asleep[0]}",
            hint=f"type `vmcellar thaw {point.id}`, then repeat the restore: it goes on with what is written",
        )
    connection = _connection(uri, wanted.define, point) if wanted.define else None
    report = restore_point(repository, point, wanted.target(), progress, cancel)
    return _done(repository, connection, wanted, report)


def run_as_thawed(
    repository: Repository,
    point: RestorePoint,
    wanted: Wanted,
    uri: str,
    progress: ProgressSink,
    cancel: CancelToken,
) -> Done | Waiting:
    """The same, but what is asleep is waited for: what can be read by now is written, and the same call goes on."""
    connection = _connection(uri, wanted.define, point) if wanted.define else None
    report = restore_readable(repository, point, wanted.target(), progress, cancel)
    return report if isinstance(report, Waiting) else _done(repository, connection, wanted, report)


def _done(repository: Repository, connection: Connection | None, wanted: Wanted, report: RestoreReport) -> Done:
    uses.note(repository, report.point)
    if connection is None or wanted.define is None:
        return Done(report, None)
    return Done(report, _define(connection, wanted.define, report, wanted.networks))


def _connection(uri: str, name: str, point: RestorePoint) -> Connection:
    from vmcellar.restore.define import check_name_free  # noqa: PLC0415  (needs libvirt)
    from vmcellar.sources.libvirt_connection import Connection  # noqa: PLC0415  (the same)

    refuse_other_host(uri, f"defining {name}")
    if point.artifact(DOMAIN_XML) is None:
        raise PermanentError(
            f"point {point.id} of {point.vm} holds no domain XML, so no VM can be defined",
            hint="restore its disks with --to DIR; nothing was written",
        )
    connection = Connection(uri)
    check_name_free(connection, name)
    return connection


def _define(connection: Connection, name: str, report: RestoreReport, networks: Networks) -> DefinedDomain:
    from vmcellar.restore.define import define_domain  # noqa: PLC0415  (needs libvirt)
    from vmcellar.restore.domain_xml import RestoredFiles  # noqa: PLC0415  (the same)

    xml = report.artifacts.get(DOMAIN_XML)
    if xml is None:
        raise PermanentError(
            f"{report.vm}: domain.xml of point {report.point} is lost, so {name} was not defined",
            hint=f"the disks were restored to {report.directory}: define a VM on them by hand",
        )
    images = {disk.target: disk.path for disk in report.disks}
    files = RestoredFiles(report.directory, report.format, images, report.artifacts)
    tpm = report.artifacts.get(TPM_ARCHIVE)
    try:
        return define_domain(connection, xml.read_text(encoding="utf-8"), name, files, tpm, networks)
    except TransientError as error:  # the whole restore cannot be done again: its files are there
        raise PermanentError(
            f"{report.vm} is restored to {report.directory}, but {name} could not be defined: {error.message}",
            hint=f"remove {report.directory} and restore again, or define a VM on the disks there by hand",
        ) from error
