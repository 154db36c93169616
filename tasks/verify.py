"""Proving points as tasks: what to prove, one proof, one drill, the pages about a run. Evidence is written here."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task

from tasks.control import controls, engine_of
from tasks.retrying import RETRIED, is_last_try
from vmcellar.engine import Engine
from vmcellar.errors import CancelledError, PermanentError, TransientError, VmcellarError
from vmcellar.policy.risk import Risk, ranked
from vmcellar.progress import CancelToken
from vmcellar.quality import selection
from vmcellar.repository import evidence, layout
from vmcellar.repository.evidence import Evidence, EvidenceName
from vmcellar.repository.points import RestorePoint, is_point_id
from vmcellar.repository.unreadable import unreadable as points_unreadable
from vmcellar.tiers.base import ArchivedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmcellar.quality.proving import Recorded

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one point: its evidence, or why none could be got; `key` is the evidence's object.

    `archived`: its packs would have to be thawed first, which nobody asked for. `gone`: it was dropped meanwhile.
    """

    point: str
    vm: str
    record: Evidence | None
    problem: str = ""
    key: str = ""
    archived: bool = False
    gone: bool = False


@task(name="rank-points", **RETRIED)
def rank(config: str, vms: tuple[str, ...]) -> list[Risk]:
    """All points of the VMs, or of all, by risk."""
    engine = engine_of(config)
    repository = engine.repository
    return ranked(selection.facts(repository, engine.config, repository.clock(), vms))


@task(name="find-unreadable-points", **RETRIED)
def unreadable(config: str) -> list[Outcome]:
    """Evidence about every point whose record cannot be read; written once, not at every run."""
    from vmcellar.quality import proving  # noqa: PLC0415  (as below)
    from vmcellar.restore import prove as engine_prove  # noqa: PLC0415

    engine = engine_of(config)
    repository = engine.repository
    standings = evidence.standings(repository.tier)
    found = []
    for point, problem in points_unreadable(repository).items():
        record = engine_prove.unreadable(repository, point, problem)
        known = standings.get(point, evidence.NEVER).failed
        found.append(
            Outcome(point, "", record) if known else _outcome(proving.record(repository, engine.config, record))
        )
    return found


@task(name="prove", task_run_name="prove {point}", **RETRIED)
def prove(config: str, point: str, against_source: bool) -> Outcome:
    """Restore one point, hold it against its maps and the suites, and write the evidence. A point that went meanwhile,
    or could not be proven, is told of: others are proven all the same.
    """
    from vmcellar.quality import proving  # noqa: PLC0415  (libraries that take seconds to load)

    engine = engine_of(config)
    progress, cancel = controls(config, "")

    def proof(found: RestorePoint) -> Recorded:
        stale = _stale(engine, found, cancel) if against_source else None
        return proving.prove(engine.repository, engine.config, found, stale, progress, cancel)

    return _come_of(engine, point, proof)


@task(name="drill", task_run_name="drill {point}", **RETRIED)
def drill(config: str, point: str, keep: bool) -> Outcome:
    """Restore and boot one point, hold what was seen against the suites, and write the evidence."""
    from vmcellar.quality import proving  # noqa: PLC0415  (libraries that take seconds to load)

    engine = engine_of(config)
    progress, cancel = controls(config, "")
    wishes = proving.DrillWishes(keep=keep)

    def boot(found: RestorePoint) -> Recorded:
        return proving.drill(engine.repository, engine.config, found, progress, cancel, wishes)

    return _come_of(engine, point, boot)


def _come_of(engine: Engine, point: str, work: Callable[[RestorePoint], Recorded]) -> Outcome:
    """What came of it; raises what may pass while the task is tried again, and a stop."""
    vm = ""
    try:
        found = engine.repository.point(point)
        point, vm = found.id, found.vm
        return _outcome(work(found))
    except CancelledError:
        raise
    except VmcellarError as error:
        if isinstance(error, TransientError) and not is_last_try():
            raise
        gone = is_point_id(point) and not engine.repository.tier.exists(layout.point_key(point))
        return Outcome(point, vm, None, str(error), archived=isinstance(error, ArchivedError), gone=gone)


@task(name="publish", **RETRIED)
def publish(config: str, records: list[Evidence]) -> tuple[list[Any], str]:
    """The results of every expectation over a run's evidence, and the page of the Data Docs that shows them."""
    from vmcellar.quality import judge  # noqa: PLC0415  (the suites take seconds to load)

    page = judge.publish(records, quality_folder(engine_of(config)))
    return list(judge.results(records)), str(page or "")


def quality_folder(engine: Engine) -> Path:
    """Where Data Docs lie."""
    return engine.state / "quality"


def _outcome(recorded: tuple[Evidence, EvidenceName]) -> Outcome:
    record, name = recorded
    return Outcome(record.point, record.vm, record, key=name.key)


def _stale(engine: Engine, point: RestorePoint, cancel: CancelToken) -> tuple[str, ...] | None:
    from vmcellar.backup import source_check  # noqa: PLC0415  (only where it is asked for)

    try:
        return source_check.differences(engine, point, cancel)
    except PermanentError as error:  # not the newest, or its VM does not run here
        log.info("%s: point %s is not compared with the VM: %s", point.vm, point.id, error.message)
        return None
