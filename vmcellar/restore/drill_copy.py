"""The copy of a VM that a drill starts: restored in whole, or on overlays over disks served from the repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmcellar.errors import IntegrityError, PermanentError, TransientError, VmcellarError
from vmcellar.progress import CancelToken, ProgressSink
from vmcellar.repository.evidence import Check
from vmcellar.restore.boot_disks import serving, write_artifacts, write_overlays
from vmcellar.restore.boot_journal import Boot
from vmcellar.restore.domain_xml import RestoredFiles
from vmcellar.restore.plan import survey
from vmcellar.restore.qcow2_overlay import overlay_cluster
from vmcellar.restore.report import RestoreTarget
from vmcellar.restore.restore import restore_point
from vmcellar.restore.thaw import refuse_archived

if TYPE_CHECKING:
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository
    from vmcellar.restore.qcow2 import UsedClusters
    from vmcellar.restore.serve import Opening, Server

LONG_READ = 10.0
"""Seconds. A tier that answers needs a fraction of a second for what one read asks; one that is tried again and again
takes up to minutes, in which a guest that is sound runs out of the drill's limits.
"""

_HINT = "`vmcellar doctor` looks at the tiers; then drill again"


@dataclass(frozen=True, slots=True)
class Copy:
    """The files of the VM. `sizes` of its disks are in bytes; `served` is set when they lie on served ones."""

    files: RestoredFiles
    sizes: Mapping[str, int]
    served: Boot | None = None
    server: Server | None = None
    limited: tuple[str, ...] = ()
    """The tiers whose reads wait for a rate of ours, `restores:`."""

    def check_served(self, *, failed: bool) -> list[Check]:
        """A failed check when a read of its served disks met damage; to be asked at the end of the drill.

        TransientError when their server ended by itself. When the drill `failed`, and a read failed but not for damage,
        TransientError or PermanentError, as the server met it; PermanentError when a read took so long that the guest
        may have failed by that. Then nothing is known about the point.
        """
        if self.server is None:
            return []
        if self.server.ended:
            raise TransientError(
                "nbdkit, which served the disks of the drill, ended by itself (this says nothing about the point)",
                hint="try again; its own words stand above",
            )
        return judge_reads(self.server.read_errors, self.server.longest_read, self.limited, failed=failed)


def judge_reads(
    errors: Mapping[type[VmcellarError], str], longest: float, limited: Sequence[str] = (), *, failed: bool
) -> list[Check]:
    """What the reads that failed, by kind, and the seconds of the longest say. See `Copy.check_served`.

    A read that waited for our own rate counts as any other: a sound guest runs out of the drill's limits by it, too.
    """
    if damage := errors.get(IntegrityError):
        return [Check("reads", "no damage", damage, ok=False)]
    if failed:
        for kind, message in errors.items():
            raise kind(
                f"the repository could not be read during the drill (this says nothing about the point): {message}",
                hint=_HINT,
            )
        if longest >= LONG_READ:
            raise PermanentError(  # not tried again at once: a drill takes minutes then
                f"the drill failed while the repository was slow: a read of the VM's disks took {longest:.0f} s "
                "(this says nothing about the point)",
                hint=_limited_hint(limited) if limited else _HINT,
            )
    return []


def _limited_hint(limited: Sequence[str]) -> str:
    return (
        f"reads of {' and '.join(limited)} wait for `restores:`, and a guest with them: "
        "drill with `method: restore`, which restores before it boots, or give it a higher rate"
    )


def restored(
    repository: Repository, point: RestorePoint, folder: Path, progress: ProgressSink, cancel: CancelToken
) -> Copy:
    """Every byte of the point in images of its own. Errors are those of `restore_point`."""
    report = restore_point(repository, point, RestoreTarget(folder), progress, cancel)
    files = RestoredFiles(folder, report.format, {disk.target: disk.path for disk in report.disks}, report.artifacts)
    return Copy(files, {disk.target: disk.size for disk in report.disks})


def planned(repository: Repository, point: RestorePoint, cancel: CancelToken) -> Mapping[str, UsedClusters]:
    """Everything that the point needs is found, as before a restore, with its errors; where its disks hold data."""
    plan, used = survey(repository, point, (), best_effort=False, cancel=cancel, cluster_of=overlay_cluster)
    refuse_archived(repository, plan)
    return used


def served(
    repository: Repository,
    opening: Opening,
    point: RestorePoint,
    entry: Boot,
    used: Mapping[str, UsedClusters],
    held: ExitStack,
) -> Copy:
    """Overlays over the point's disks, which are served until `held` closes."""
    server = held.enter_context(serving(repository, opening, entry, point, point.disks))
    artifacts = write_artifacts(repository, point, Path(entry.folder))
    files = RestoredFiles(Path(entry.folder), "qcow2", write_overlays(entry, used), artifacts)
    limited = tuple(sorted(repository.restore_pace.throttles))
    return Copy(files, {disk.target: disk.size for disk in point.disks}, entry, server, limited)
