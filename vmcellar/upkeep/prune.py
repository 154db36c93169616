"""prune: drop restore points by policy. Every point is a full one, so dropping any touches no other.

Only objects under `points/` go; what they needed is left to gc. Never dropped, whatever the rules say: a pinned point,
the newest point of a VM, and its newest verified point with a checkpoint, on which the next backup builds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import TYPE_CHECKING

from vmcellar.config.jobs import BackupJob
from vmcellar.errors import PermanentError, VmcellarError
from vmcellar.policy.retention import Moment, Rules, Verdict, decide
from vmcellar.progress import CancelToken, ProgressSink, no_progress
from vmcellar.repository import layout, leases
from vmcellar.tiers.base import ExistsError, LockedError, NotFoundError
from vmcellar.upkeep.pins import pinned

if TYPE_CHECKING:
    from vmcellar.repository.leases import HeldLease
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rules judge a point, and among which others: points of one VM and one `group` are judged together."""

    group: str
    rules: Rules | None
    why_none: str = "no retention"


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one point, and why."""

    point: RestorePoint
    keep: bool
    why: str


def rules_for_all(rules: Rules) -> Callable[[RestorePoint], Choice]:
    """Every point is judged by the same rules."""
    return lambda _: Choice("", rules)


def rules_of_jobs(jobs: Sequence[BackupJob]) -> Callable[[RestorePoint], Choice]:
    """A point is judged by the retention of the job that made it; one made by hand, by that of the only job that
    selects its VM by name. Anything else is kept, with the reason.
    """
    by_name = {job.name: job for job in jobs}

    def choose(point: RestorePoint) -> Choice:
        if point.job:
            job = by_name.get(point.job)
            if job is None:
                return Choice(point.job, None, f"its job {point.job} is not in the configuration")
            return Choice(job.name, job.retention, f"job {job.name} has no retention")
        selecting = [job for job in jobs if job.selects_by_name(point.vm) is not False]
        perhaps = next((job for job in selecting if job.selects_by_name(point.vm) is None), None)
        if perhaps is not None:
            return Choice("", None, f"a tag decides whether job {perhaps.name} selects its VM")
        if len(selecting) == 1:
            return Choice(selecting[0].name, selecting[0].retention, f"job {selecting[0].name} has no retention")
        return Choice("", None, "several jobs select its VM" if selecting else "no job selects its VM")

    return choose


def plan(
    points: Iterable[RestorePoint],
    choose: Callable[[RestorePoint], Choice],
    *,
    pins: Collection[str],
    now: float,
    zone: tzinfo = UTC,
) -> list[Decision]:
    """What prune would do with these points, by VM, oldest first. All points of a VM must be given; reads nothing."""
    by_vm: dict[str, list[RestorePoint]] = {}
    for point in points:
        by_vm.setdefault(point.vm, []).append(point)
    decisions: list[Decision] = []
    for vm in sorted(by_vm):
        decisions += _plan_vm(by_vm[vm], choose, pins, now, zone)
    return decisions


def _plan_vm(
    points: list[RestorePoint],
    choose: Callable[[RestorePoint], Choice],
    pins: Collection[str],
    now: float,
    zone: tzinfo,
) -> list[Decision]:
    groups: dict[str, tuple[Choice, list[Moment]]] = {}
    for point in points:
        choice = choose(point)
        groups.setdefault(choice.group, (choice, []))[1].append(Moment(point.id, point.time))
    verdicts: dict[str, Verdict] = {}
    for choice, moments in groups.values():
        found = decide(moments, choice.rules, now=now, zone=zone, pinned=pins)
        if choice.rules is None:
            found = {name: v if name in pins else Verdict(True, choice.why_none) for name, v in found.items()}
        verdicts.update(found)
    ordered = sorted(points, key=lambda point: (point.time, point.id))
    for name in _next_parents(ordered):
        if not verdicts[name].keep:
            verdicts[name] = Verdict(True, "the next backup builds on it")
    return [Decision(point, verdicts[point.id].keep, verdicts[point.id].why) for point in ordered]


def _next_parents(ordered: list[RestorePoint]) -> set[str]:
    """The newest verified point, and the newest of those that has a checkpoint."""
    verified = [point.id for point in ordered if point.verified]
    with_checkpoint = [point.id for point in ordered if point.verified and point.checkpoint]
    return {*verified[-1:], *with_checkpoint[-1:]}


def drop(
    repository: Repository,
    decisions: Sequence[Decision],
    progress: ProgressSink = no_progress,
    cancel: CancelToken | None = None,
) -> list[RestorePoint]:
    """Drop what `decisions` say, oldest first; the points that are gone now. What is locked stays, with a warning.

    Holds a lease. Before and after each point it looks again: a pin that came meanwhile keeps it or brings it back, and
    PermanentError is raised when no other point of its VM is left. Stopping or dying in between leaves the others.
    Reports points as "prune".
    """
    cancel = cancel or CancelToken()
    dropped = []
    with leases.making_room(repository.tier, repository.keyring, "prune", repository.clock) as lease:
        for decision in decisions:
            cancel.check()
            if not decision.keep and _drop_one(repository, lease, decision.point, _kept(decisions, decision.point.vm)):
                dropped.append(decision.point)
                progress("prune", 1)
    return dropped


def _kept(decisions: Iterable[Decision], vm: str) -> list[str]:
    return [decision.point.id for decision in decisions if decision.keep and decision.point.vm == vm]


def _drop_one(repository: Repository, lease: HeldLease, point: RestorePoint, kept: list[str]) -> bool:
    lease.check()
    if not any(repository.tier.exists(layout.point_key(name)) for name in reversed(kept)):
        raise PermanentError(
            f"{point.vm}: none of the points that were to stay is there any more: {point.id} is not dropped",
            hint="another prune ran meanwhile; run the command again",
        )
    if point.id in pinned(repository):
        return False
    key = layout.point_key(point.id)
    try:
        data = repository.tier.get(key)
        repository.tier.delete(key)
        if _pinned_meanwhile(repository, point, data):
            return False
    except LockedError as error:
        log.warning("%s: %s stays until a later prune: %s", point.vm, point.id, error.message)
        return False
    except NotFoundError:  # somebody else dropped it
        pass
    return True


def _pinned_meanwhile(repository: Repository, point: RestorePoint, data: bytes) -> bool:
    """The look at pins after a point was deleted; whoever pins looks for the point after that, so one of the two sees
    the other. The point is back, for sure once this returns or raises, if it is pinned or that cannot be told.
    """
    try:
        meanwhile = point.id in pinned(repository)
    except BaseException:
        _put_back(repository, point, data)
        raise
    if meanwhile:
        _put_back(repository, point, data)
    return meanwhile


def _put_back(repository: Repository, point: RestorePoint, data: bytes) -> None:
    try:
        repository.tier.put(layout.point_key(point.id), data)
    except ExistsError:
        return
    except VmcellarError as error:
        raise PermanentError(
            f"{point.vm}: restore point {point.id} was deleted, may be pinned, and cannot be put back: {error.message}",
            hint="let no gc run; `vmcellar pin` shows the pins. A mirror or an older copy of the repository has the "
            f"object {layout.point_key(point.id)}",
        ) from error
