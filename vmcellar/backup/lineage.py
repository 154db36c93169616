"""Which points and checkpoints the next backups of a VM are measured against, and so which checkpoints stay on it.

Each checkpoint has a bitmap of its own, which records from the checkpoint until its removal (libvirt 7.2 and later), so
what changed since one is known whatever becomes of the others.
"""

from __future__ import annotations

from collections.abc import Sequence

from vmcellar.config.model import Config
from vmcellar.repository.points import RestorePoint
from vmcellar.sources.base import CheckpointRecord

CHAIN = 3
"""How many checkpoints stay at least: the newest point's, and two older ones to fall back to (pitfall 2)."""


def kept(config: Config, vm: str, points: Sequence[RestorePoint]) -> tuple[CheckpointRecord, ...]:
    """The checkpoints of `vm` that stay, oldest first: the newest three, and that of the newest full while a
    differential job may need it. `points` are all of the VM's, oldest first; only verified ones count (pitfall 2).
    """
    tracked = [point for point in points if point.verified and point.checkpoint]
    stay = tracked[-CHAIN:]
    base = base_of(points)
    if base in tracked and base not in stay and _has_differential_job(config, vm, points[points.index(base) :]):
        stay.insert(0, base)
    return tuple(CheckpointRecord(point.checkpoint, point.checkpoint_xml) for point in stay)


def base_of(points: Sequence[RestorePoint]) -> RestorePoint | None:
    """The newest verified full point: what a differential backup is measured against."""
    return next((point for point in reversed(points) if point.verified and point.kind == "full"), None)


def read_anew(points: Sequence[RestorePoint], base: RestorePoint, targets: Sequence[str]) -> str:
    """Which of the disks `targets` was read whole since `base`, and why, in words; empty when none was.

    Whatever made that needful, as a tracker that missed changes, may be true of the base's bitmap, too.
    """
    for point in points[points.index(base) + 1 :]:
        for disk in point.disks:
            if disk.target in targets and disk.reason:
                return f"{disk.target} was read whole for point {point.id}: {disk.reason}"
    return ""


def _has_differential_job(config: Config, vm: str, since: Sequence[RestorePoint]) -> bool:
    """Whether a job that is differential selects the VM by name, or made one of its points since the full: tags are
    not asked for.
    """
    made_by = {point.job for point in since}
    jobs = (job for job in config.backups if job.mode == "differential")
    return any(job.name in made_by or job.selects_by_name(vm) for job in jobs)
