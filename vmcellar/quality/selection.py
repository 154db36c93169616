"""What is known of every point, for the choice of what to prove next; reads points and names of evidence only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vmcellar.config.jobs import BackupJob
from vmcellar.errors import VmcellarError
from vmcellar.policy.governing import governing_job
from vmcellar.policy.risk import Facts
from vmcellar.repository import evidence, layout
from vmcellar.repository.evidence import EvidenceName, Standing
from vmcellar.repository.points import RestorePoint
from vmcellar.tiers.base import NotFoundError

if TYPE_CHECKING:
    from vmcellar.repository.repository import Repository


def facts(repository: Repository, jobs: Sequence[BackupJob], now: float, vms: Sequence[str] = ()) -> list[Facts]:
    """The facts of every readable point, or of those of `vms`; `now` in seconds since the epoch."""
    standings = evidence.standings(repository.tier)
    by_vm: dict[str, list[RestorePoint]] = {}
    for point in repository.readable_points():
        if not vms or point.vm in vms:
            by_vm.setdefault(point.vm, []).append(point)
    return [each for vm in sorted(by_vm) for each in _of_vm(by_vm[vm], jobs, standings, now)]


def _of_vm(
    points: list[RestorePoint], jobs: Sequence[BackupJob], standings: Mapping[str, Standing], now: float
) -> list[Facts]:
    points.sort(key=lambda point: (point.time, point.id))
    drilled = _age([s.drill for point in points if (s := standings.get(point.id)) is not None], now)
    found, increments = [], 0
    for point in points:
        increments = increments + 1 if point.kind == "incremental" else 0
        standing = standings.get(point.id, evidence.NEVER)
        job = governing_job(jobs, point.vm, point.job)
        found.append(
            Facts(
                point=point.id,
                vm=point.vm,
                age=max(0.0, now - point.time),
                proven=_age([each for each in standing.newest if each.verdict == "passed"], now),
                drilled=drilled,
                increments=increments,
                importance=job.importance if job else 1,
                newest=point is points[-1],
                failed=standing.failed,
            )
        )
    return found


def _age(names: Sequence[EvidenceName | None], now: float) -> float | None:
    times = [each.when.timestamp() for each in names if each is not None]
    return max(0.0, now - max(times)) if times else None


def unreadable(repository: Repository) -> dict[str, str]:
    """The points whose record cannot be read, and why: damaged, forged, or put under another's name."""
    known = {point.id for point in repository.readable_points()}
    found = {}
    for key, _ in repository.tier.list(layout.POINTS):
        name = key.removeprefix(layout.POINTS)
        if name not in known:
            try:
                repository.point(name)
            except NotFoundError:
                continue
            except VmcellarError as error:
                found[name] = error.message
    return found


def age_of_newest(points: Sequence[RestorePoint], point: RestorePoint, now: float) -> float | None:
    """The age of a point if it is the newest verified one among its VM's `points`, else None."""
    newest = max((each for each in points if each.verified), key=lambda each: (each.time, each.id), default=None)
    return max(0.0, now - point.time) if newest is not None and newest.id == point.id else None
