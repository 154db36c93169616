"""Service levels per VM: age of the newest verified point, last measured restore time, days since the last drill."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

from vmcellar.config.jobs import BackupJob
from vmcellar.errors import IntegrityError
from vmcellar.policy.governing import governing_job, promised
from vmcellar.repository import evidence
from vmcellar.repository.evidence import EvidenceName, Standing
from vmcellar.repository.points import RestorePoint
from vmcellar.tiers.base import NotFoundError

if TYPE_CHECKING:
    from vmcellar.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class Level:
    """One VM against its policy; times and ages in seconds, None for what is not known or not asked for.

    `rpo` is the age of the newest point that was verified and against which no evidence speaks, `rto` what the last
    drill measured, `predicted` what the rate of all VMs' last drills (the median of seconds per byte of disk) says of
    that point, `drilled` and `proven` how long ago the last drill and the last proof of any kind were that passed.
    `problems` say in words where the policy is not met.
    """

    vm: str
    job: str
    point: str
    rpo: float | None
    rpo_limit: float | None
    rto: float | None
    rto_limit: float | None
    drilled: float | None
    proven: float | None
    problems: tuple[str, ...]
    predicted: float | None = None


def levels(repository: Repository, jobs: Sequence[BackupJob], now: float, tried: Iterable[str] = ()) -> list[Level]:
    """Every VM that has points or that a job names in full, and of those of which a backup was `tried` each that a job
    selects by name; in order of names. Only the last drill of each VM is read.
    """
    standings = evidence.standings(repository.tier)
    wanted = {vm for vm in tried if any(job.selects_by_name(vm) for job in jobs)}
    by_vm: dict[str, list[RestorePoint]] = {vm: [] for vm in _named(jobs) | wanted}
    for point in evidence.sound(repository.readable_points(), standings):
        by_vm.setdefault(point.vm, []).append(point)
    found = [_level(repository, vm, by_vm[vm], jobs, standings, now) for vm in sorted(by_vm)]
    rates = [rate for level in found if (rate := _rate(level, by_vm[level.vm], standings)) is not None]
    if not rates:
        return found
    return [replace(level, predicted=_predicted(level, by_vm[level.vm], median(rates))) for level in found]


def _rate(level: Level, points: list[RestorePoint], standings: Mapping[str, Standing]) -> float | None:
    """Seconds per byte of disk of the VM's last drill."""
    drill = _last_drill(points, standings)
    if drill is None or level.rto is None:
        return None
    size = next(_size(point) for point in points if point.id == drill.point)
    return level.rto / size if size else None


def _predicted(level: Level, points: list[RestorePoint], rate: float) -> float | None:
    return next((_size(point) * rate for point in points if point.id == level.point), None)


def _size(point: RestorePoint) -> int:
    return sum(disk.size for disk in point.disks)


def _named(jobs: Sequence[BackupJob]) -> set[str]:
    """The VMs that jobs name in full, so that one whose backups never came about is not passed over."""
    entries = {(job, entry) for job in jobs for entry in job.domains if not entry.startswith(("!", "tag:"))}
    return {entry for job, entry in entries if not set(entry) & set("*?[") and job.selects(entry)}


def _level(
    repository: Repository,
    vm: str,
    points: list[RestorePoint],
    jobs: Sequence[BackupJob],
    standings: Mapping[str, Standing],
    now: float,
) -> Level:
    points.sort(key=lambda point: (point.time, point.id))
    newest = next((point for point in reversed(points) if point.verified), None)
    made_by = next((point.job for point in reversed(points) if point.job), "")
    job, promise = governing_job(jobs, vm, points[-1].job if points else ""), promised(jobs, vm, made_by)
    proofs = [each for point in points for each in standings.get(point.id, evidence.NEVER).newest]
    drill = _last_drill(points, standings)
    rpo = max(0.0, now - newest.time) if newest else None
    rpo_limit, rto_limit = (None if limit is None else float(limit) for limit in (promise.rpo, promise.rto))
    rto = _rto(repository, drill)
    return Level(
        vm=vm,
        job=job.name if job else "",
        point=newest.id if newest else "",
        rpo=rpo,
        rpo_limit=rpo_limit,
        rto=rto,
        rto_limit=rto_limit,
        drilled=_age(drill, now),
        proven=_age(_latest(each for each in proofs if each.verdict == "passed"), now),
        problems=_problems(rpo, rpo_limit, rto, rto_limit, drill),
    )


def _problems(
    rpo: float | None, rpo_limit: float | None, rto: float | None, rto_limit: float | None, drill: EvidenceName | None
) -> tuple[str, ...]:
    found = []
    if rpo is None:
        found.append("no verified point")
    elif rpo_limit is not None and rpo > rpo_limit:
        found.append("the newest verified point is older than rpo")
    if rto_limit is not None and drill is None:
        found.append("never drilled, so rto is not known")
    elif rto_limit is not None and drill is not None and rto is None and drill.verdict == "passed":
        found.append("the record of the last drill cannot be read, so rto is not known")
    elif rto_limit is not None and rto is not None and rto > rto_limit:
        found.append("the last drill took longer than rto")
    if drill is not None and drill.verdict == "failed":
        found.append("the last drill failed")
    return tuple(found)


def _last_drill(points: Iterable[RestorePoint], standings: Mapping[str, Standing]) -> EvidenceName | None:
    return _latest(drill for point in points if (drill := standings.get(point.id, evidence.NEVER).drill) is not None)


def _latest(names: Iterable[EvidenceName]) -> EvidenceName | None:
    return max(names, key=lambda each: each.stamp, default=None)


def _age(name: EvidenceName | None, now: float) -> float | None:
    return max(0.0, now - name.when.timestamp()) if name else None


def _rto(repository: Repository, name: EvidenceName | None) -> float | None:
    try:
        return evidence.read(repository, name).rto if name else None
    except (IntegrityError, NotFoundError):
        return None
