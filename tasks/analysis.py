"""Looking at the history as tasks. pandas, matplotlib and Great Expectations load when they run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.control import engine_of

if TYPE_CHECKING:
    import pandas as pd

    from vmcellar.analysis.adapting import Applied
    from vmcellar.analysis.advise import Advice
    from vmcellar.analysis.gains import Gain
    from vmcellar.analysis.report import Analysis, Quality
    from vmcellar.catalog.models import Anomaly


ADAPT = "adapt-schedules"
"""Who changed a schedule, in the audit trail."""


@task(name="check-history", cache_policy=NO_CACHE)
def check_history(config: str) -> tuple[Quality, pd.DataFrame]:
    """Bring the catalog up to the repository, and judge its rows; what is good of them is read once, for all tasks."""
    from vmcellar.analysis.report import check  # noqa: PLC0415

    engine = engine_of(config)
    return check(engine.catalog, engine.repository)


@task(name="act-on-anomalies", cache_policy=NO_CACHE)
def act_on_anomalies(config: str, good: pd.DataFrame) -> list[Anomaly]:
    """Write down the anomalies that have consequences, pin points and ask for full backups; gives those that people
    were not told of yet, or that wait for a drill.
    """
    from vmcellar.analysis import consequences  # noqa: PLC0415
    from vmcellar.analysis.anomalies import find  # noqa: PLC0415
    from vmcellar.policy.localzone import local_zone  # noqa: PLC0415

    engine = engine_of(config)
    catalog, repository = engine.catalog, engine.repository
    now = repository.clock()
    found = find(good, now, consequences.days_to_look(engine.state, now), local_zone())
    consequences.note(catalog, repository, engine.config, found, now)
    consequences.act(catalog, repository, engine.config, now)
    consequences.note_looked(engine.state, now)
    open_rows = [row for row in catalog.anomalies() if row.judged is None]
    return [row for row in open_rows if row.told is None or consequences.waits_for_drill(row)]


@task(name="claim-drill", cache_policy=NO_CACHE)
def claim_drill(config: str, row: Anomaly) -> bool:
    """Whether the drill that follows from an anomaly is this host's to do."""
    from vmcellar.analysis import consequences  # noqa: PLC0415

    return consequences.claim_drill(engine_of(config).catalog, row)


@task(name="note-anomalies", cache_policy=NO_CACHE)
def note_anomalies(config: str, row: Anomaly, column: str) -> None:
    """Write down that it was `told`, or what came of its `drill`. Nothing else of the row is touched: a drill takes
    minutes, in which somebody may judge.
    """
    engine_of(config).catalog.change([row], (column,))


@task(name="analyse-history", cache_policy=NO_CACHE)
def analyse_history(config: str, good: pd.DataFrame) -> Analysis:
    """Tables and plots of the good rows."""
    from vmcellar.analysis.report import analyse  # noqa: PLC0415

    engine = engine_of(config)
    return analyse(engine.catalog, engine.repository, engine.config, good)


@task(name="advise-schedules", cache_policy=NO_CACHE)
def advise_schedules(config: str, good: pd.DataFrame, budget: float, even: bool) -> tuple[Advice, list[Gain]]:
    """Advice by the good rows of the history; and what advice that was applied before has brought."""
    from vmcellar.analysis import adapting  # noqa: PLC0415
    from vmcellar.analysis.cellar_bounds import Cellar  # noqa: PLC0415
    from vmcellar.analysis.gains import gains  # noqa: PLC0415
    from vmcellar.policy.timetable import read_advised  # noqa: PLC0415

    engine = engine_of(config)
    now = engine.repository.clock()
    limits, jobs = engine.config.limits, engine.config.backups
    changes = engine.catalog.schedule_changes()
    own = adapting.own_runs(changes)
    cellar = Cellar.of(engine.config, engine.catalog)
    standing = read_advised(engine.config.state)
    wishes = adapting.Wishes(limits.at_once, budget, even)
    advice = adapting.advice_for(good, now, jobs, wishes, own, cellar, standing)
    return advice, gains(changes, good, now)


@task(name="apply-advice", cache_policy=NO_CACHE)
def apply_advice(config: str, advice: Advice) -> Applied:
    """Make it the schedules of this host; the server is told by `reconcile-schedules`."""
    from vmcellar.analysis import adapting  # noqa: PLC0415

    engine = engine_of(config)
    return adapting.apply(engine.config, engine.catalog, advice, ADAPT)


@task(name="undo-advice", cache_policy=NO_CACHE)
def undo_advice(config: str) -> tuple[str, ...]:
    """Take the last applied advice back."""
    from vmcellar.analysis import adapting  # noqa: PLC0415

    engine = engine_of(config)
    return adapting.undo(engine.config, engine.catalog, ADAPT)
