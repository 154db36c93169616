"""What is known of every point, for the choice of what to prove next; reads points, names of evidence, the catalog."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from vmcellar.config.placement import REST, Placement
from vmcellar.errors import VmcellarError
from vmcellar.policy.governing import governing_job
from vmcellar.policy.risk import Facts
from vmcellar.repository import evidence
from vmcellar.repository.evidence import EvidenceName, Standing
from vmcellar.repository.points import RestorePoint

if TYPE_CHECKING:
    from vmcellar.config.model import Config
    from vmcellar.repository.repository import Repository

log = logging.getLogger(__name__)


def facts(repository: Repository, config: Config, now: float, vms: Sequence[str] = ()) -> list[Facts]:
    """The facts of every readable point, or of those of `vms`; `now` in seconds since the epoch."""
    strange = _strange(repository, config)
    standings = evidence.standings(repository.tier)
    by_vm: dict[str, list[RestorePoint]] = {}
    for point in repository.readable_points():
        if not vms or point.vm in vms:
            by_vm.setdefault(point.vm, []).append(point)
    return [each for vm in sorted(by_vm) for each in _of_vm(by_vm[vm], config, standings, vm in strange, now)]


def _strange(repository: Repository, config: Config) -> Collection[str]:
    """The VMs with an anomaly that nobody has judged; none, with a warning, where the catalog does not answer."""
    from vmcellar.catalog.catalog import Catalog  # noqa: PLC0415  (SQLAlchemy takes its time to load)

    try:
        return {row.vm for row in Catalog.of(config, repository.id).anomalies() if row.judged is None}
    except VmcellarError as error:
        log.warning("the risk of points is judged without anomalies: %s", error.message)
        return ()


def _of_vm(
    points: list[RestorePoint], config: Config, standings: Mapping[str, Standing], strange: bool, now: float
) -> list[Facts]:
    points.sort(key=lambda point: (point.time, point.id))
    drilled = _age([s.drill for point in points if (s := standings.get(point.id)) is not None], now)
    bad = {point.id for point in points if standings.get(point.id, evidence.NEVER).failed}
    found: list[Facts] = []
    increments, behind = 0, dict[str | None, int]()
    for point in points:
        increments = behind.get(point.parent, increments) + 1 if point.kind == "incremental" else 0
        behind[point.id] = increments
        standing = standings.get(point.id, evidence.NEVER)
        job = governing_job(config.backups, point.vm, point.job)
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
                anomaly=strange,
                damage=bool(bad - {point.id}),
                tier=_tier(config.placement, max(0.0, now - point.time)),
            )
        )
    return found


def _tier(placement: Placement | None, age: float) -> str:
    """The tier behind the hot one on which a point of that age has its packs by the rules; those that younger points
    need, too, lie nearer.
    """
    limits = placement.limits() if placement else []
    name = next((name for name, until in limits if until == REST or age < float(until)), "")
    return "" if name == "hot" else name


def _age(names: Sequence[EvidenceName | None], now: float) -> float | None:
    times = [each.when.timestamp() for each in names if each is not None]
    return max(0.0, now - max(times)) if times else None


def age_of_newest(points: Sequence[RestorePoint], point: RestorePoint, now: float) -> float | None:
    """The age of a point if it is the newest verified one among its VM's `points`, else None."""
    newest = max((each for each in points if each.verified), key=lambda each: (each.time, each.id), default=None)
    return max(0.0, now - point.time) if newest is not None and newest.id == point.id else None
