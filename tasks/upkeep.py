"""Upkeep as tasks: one engine call each."""

from __future__ import annotations

from dataclasses import dataclass

from prefect import get_run_logger, task

from tasks.control import controls, engine_of
from tasks.retrying import RETRIED
from vmcellar.config.units import parse_duration
from vmcellar.errors import VmcellarError
from vmcellar.policy.localzone import local_zone
from vmcellar.repository import evidence
from vmcellar.upkeep import gc, pins
from vmcellar.upkeep import prune as pruning
from vmcellar.upkeep.gcreport import GcReport
from vmcellar.upkeep.prune import Decision
from vmcellar.upkeep.rules import kept_until

ACTIVITY = "upkeep"
"""The name under which a run's cancel token and progress are found."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was decided of every point and why, and the ids of those that are gone now; of a dry run those that would
    go. One that was to go and is not among them is locked, or was pinned meanwhile.
    """

    plan: tuple[Decision, ...]
    gone: frozenset[str]


@task(name="prune", **RETRIED)
def prune(config: str, dry_run: bool) -> Pruned:
    """Drop the points that the jobs' retention lets go."""
    engine = engine_of(config)
    progress, cancel = controls(config, ACTIVITY)
    repository = engine.repository
    plan = pruning.plan(
        evidence.sound(repository.points(), evidence.standings(repository.tier)),
        pruning.rules_of_jobs(engine.config.backups),
        pins=pins.pinned(repository),
        now=repository.clock(),
        zone=local_zone(),
    )
    if dry_run:
        gone = [decision.point for decision in plan if not decision.keep]
    else:
        gone = pruning.drop(repository, plan, progress, cancel)
    return Pruned(tuple(plan), frozenset(point.id for point in gone))


@task(name="collect-garbage", **RETRIED)
def collect_garbage(config: str, grace: str, dry_run: bool) -> GcReport:
    """Delete what no point needs and was marked a grace time ago; mark the rest."""
    progress, cancel = controls(config, ACTIVITY)
    engine = engine_of(config)
    return gc.collect(
        engine.repository,
        grace=parse_duration(grace),
        kept=kept_until(engine.config),
        dry_run=dry_run,
        progress=progress,
        cancel=cancel,
    )


@task(name="note-room", **RETRIED)
def note_room(config: str) -> None:
    """Note in the catalog what each tier holds and has left, as `vmcellar capacity` does: metrics and alerts go by it.
    A catalog that cannot be written is a warning.
    """
    from vmcellar.analysis.capacity import tiers_now, use_rows  # noqa: PLC0415  (pandas)

    engine = engine_of(config)
    repository, now = engine.repository, engine.repository.clock()
    try:
        engine.catalog.add(use_rows(repository.id.hex(), tiers_now(repository, engine.config, now), now))
    except VmcellarError as error:
        get_run_logger().warning("how full the tiers are is not noted: %s", error.message)
