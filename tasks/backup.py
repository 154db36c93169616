"""The stages of a backup as tasks. Each passes ids and figures, never disk bytes.

The stages are idempotent through the run directory, so a retry or a resumed run redoes only what is missing. Prefect
caches `export` too, under (repository, checkpoint, run, disk, segment, format version), so that a resumed run shows
what had landed. Its cache knows nothing of the outside world: `export_again` says whether what a result names is gone,
and then the flow refreshes it. Snapshot, release and commit are never cached.

What a segment's task gives lies in the run directory; to Prefect it gives None. Of any other plain value Prefect
remembers the address in memory, and takes whatever lies there later for it: edges in the graph that are not there
(PrefectHQ/prefect #20558).
"""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.cache_policies import CacheKeyFnPolicy
from prefect.context import TaskRunContext

from tasks.control import controls, engine_of
from tasks.retrying import RETRIED
from vmcellar.backup import stages
from vmcellar.backup.export import landed_before
from vmcellar.backup.model import BackupRequest, PointSummary, RunHandle, to_json
from vmcellar.repository.layout import FORMAT_VERSION


def _segment_key(context: TaskRunContext, parameters: dict[str, Any]) -> str:
    part = parameters["part"]
    return f"{context.task.name}-v{FORMAT_VERSION}-{part['key']}-{part['target']}-{part['segment']}"


CACHED: dict[str, Any] = {
    "cache_policy": CacheKeyFnPolicy(cache_key_fn=_segment_key),
    "persist_result": True,
    "result_serializer": "json",
}


def parts_of(config: str, handle: RunHandle) -> list[dict[str, Any]]:
    """The one small argument of each segment's tasks; `key` makes cached results of another instant impossible."""
    repository = engine_of(config).repository.id.hex()
    key = f"{repository[:16]}-{handle.checkpoint.rsplit('-', 1)[-1]}-{handle.run_id}"
    counts: dict[str, int] = {}
    for segment in handle.segments:
        counts[segment.target] = counts.get(segment.target, 0) + 1
    return [
        {
            "config": config,
            "vm": handle.vm,
            "run": handle.run_id,
            "key": key,
            "target": segment.target,
            "segment": segment.number,
            "label": f"{segment.target} {segment.number + 1}/{counts[segment.target]}",
        }
        for segment in handle.segments
    ]


@task(name="snapshot", task_run_name="snapshot {request.vm}", **RETRIED)
def snapshot(config: str, request: BackupRequest) -> str:
    """Hold one instant of all disks of the VM, or go on with a run that died. Gives a RunHandle as JSON: of a value,
    Prefect would draw an edge to every task that takes a part of it.
    """
    _, cancel = controls(config, request.vm)
    return to_json(stages.snapshot(engine_of(config), request, cancel)).decode()


@task(name="export", task_run_name="export {part[label]}", **RETRIED, **CACHED)
def export(part: dict[str, Any]) -> None:
    """Read one segment of the held instant and land what is new."""
    _segment(stages.export, part)


export_anew = export.with_options(refresh_cache=True)
"""The same, whatever Prefect has cached."""


def export_again(part: dict[str, Any]) -> bool:
    """Whether the segment has to be read (again): nothing of an earlier export is there and whole."""
    engine = engine_of(part["config"])
    directory = engine.run(part["run"]).directory
    return landed_before(engine, directory, part["target"], part["segment"]) is None


@task(name="release", task_run_name="release {vm}", **RETRIED)
def release(config: str, run: str, vm: str) -> None:  # noqa: ARG001  (the VM is for the run's name)
    """End the backup job: the VM needs no more of us."""
    stages.release(engine_of(config), run)


@task(name="compress", task_run_name="compress {part[label]}", **RETRIED)
def compress(part: dict[str, Any]) -> None:
    """Turn a landing into sealed packs."""
    _segment(stages.compress, part)


@task(name="place", task_run_name="place {part[label]}", **RETRIED)
def place(part: dict[str, Any]) -> None:
    """Make the packs durable on the tier."""
    _segment(stages.place, part)


@task(name="verify", task_run_name="verify {part[label]}", **RETRIED)
def verify(part: dict[str, Any]) -> None:
    """Read the packs back from the tier and compare them with what the source gave."""
    _segment(stages.verify, part)


@task(name="commit", task_run_name="commit {vm}", **RETRIED)
def commit(config: str, run: str, vm: str) -> PointSummary:  # noqa: ARG001  (the VM is for the run's name)
    """Write the restore point, last of all."""
    return stages.commit(engine_of(config), run)


def _segment(stage: Any, part: dict[str, Any]) -> None:
    progress, cancel = controls(part["config"], part["vm"])
    stage(engine_of(part["config"]), part["run"], part["target"], part["segment"], progress, cancel)
