"""Moving packs between tiers as tasks: one engine call each."""

from __future__ import annotations

from prefect import task

from tasks.control import controls, engine_of
from tasks.retrying import RETRIED
from vmcellar.upkeep import rebalance, survey, tierstat
from vmcellar.upkeep.rules import rules_of


@task(name="move-packs", **RETRIED)
def move_packs(config: str, at_once: int, rate: int | None, dry_run: bool) -> rebalance.RebalanceReport:
    """Put every pack where the rules say, and bring the mirrors up to date. A retry goes on where it stopped."""
    engine = engine_of(config)
    progress, cancel = controls(config, "")
    return rebalance.rebalance(
        engine.repository,
        rules_of(engine.config),
        at_once=at_once,
        rate=rate,
        dry_run=dry_run,
        progress=progress,
        cancel=cancel,
    )


@task(name="tiers", **RETRIED)
def tiers(config: str) -> list[tierstat.TierSummary]:
    """What lies on which tier now."""
    engine = engine_of(config)
    _, cancel = controls(config, "")
    found = survey.survey(engine.repository, cancel=cancel)
    return tierstat.summaries(engine.repository, found, engine.config.price_tables(), engine.repository.clock())
