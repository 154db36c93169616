"""Proving points as tasks: what to prove, one proof, one drill, the pages about a run. Evidence is written here."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task

from tasks.control import controls, engine_of
from tasks.retrying import RETRIED
from vmcellar.engine import Engine
from vmcellar.errors import PermanentError
from vmcellar.policy.risk import Risk, ranked
from vmcellar.progress import CancelToken
from vmcellar.quality import selection
from vmcellar.repository import evidence
from vmcellar.repository.evidence import Evidence, EvidenceName
from vmcellar.repository.points import RestorePoint
from vmcellar.repository.unreadable import unreadable as points_unreadable
from vmcellar.tiers.base import ArchivedError

log = logging.getLogger(__name__)

SCREEN_SHOWN = 64 << 10
"""Bytes of a screenshot that an artifact takes at most."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one point: its evidence, or why none could be got; `key` is the evidence's object.

    `archived`: its packs would have to be thawed first, which nobody asked for.
    """

    point: str
    vm: str
    record: Evidence | None
    problem: str = ""
    key: str = ""
    archived: bool = False


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
    """Restore one point, hold it against its maps and the suites, and write the evidence."""
    from vmcellar.quality import proving  # noqa: PLC0415  (libraries that take seconds to load)

    engine = engine_of(config)
    progress, cancel = controls(config, "")
    found = engine.repository.point(point)
    try:
        stale = _stale(engine, found, cancel) if against_source else None
        return _outcome(proving.prove(engine.repository, engine.config, found, stale, progress, cancel))
    except PermanentError as error:
        return Outcome(point, found.vm, None, str(error), archived=isinstance(error, ArchivedError))


@task(name="drill", task_run_name="drill {point}", **RETRIED)
def drill(config: str, point: str, keep: bool) -> Outcome:
    """Restore and boot one point, hold what was seen against the suites, and write the evidence."""
    from vmcellar.quality import proving  # noqa: PLC0415  (libraries that take seconds to load)

    engine = engine_of(config)
    progress, cancel = controls(config, "")
    found = engine.repository.point(point)
    try:
        wishes = proving.DrillWishes(keep=keep)
        return _outcome(proving.drill(engine.repository, engine.config, found, progress, cancel, wishes))
    except PermanentError as error:
        return Outcome(found.id, found.vm, None, str(error), archived=isinstance(error, ArchivedError))


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
