"""The stages of a backup as tasks. Each passes ids and figures, never disk bytes.

The stages are idempotent through the run directory, so a retry or a resumed run redoes only what is missing.
export, compress and verify are also cached by Prefect under (repository, disk, checkpoint, segment, format
version); the flow asks `*_stands` first and refreshes the cache when what a result names is not there any more,
since Prefect's cache knows nothing of the outside world.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import task
from prefect.cache_policies import CacheKeyFnPolicy
from prefect.context import TaskRunContext

from tasks.control import controls, engine_of
from tasks.retrying import DELAYS, JITTER, RETRIES, is_transient
from vmcellar.backup import stages
from vmcellar.backup.export import landed_before
from vmcellar.backup.model import BackupRequest, PointSummary, RunHandle
from vmcellar.progress import CancelToken
from vmcellar.repository.layout import FORMAT_VERSION


def _segment_key(context: TaskRunContext, parameters: dict[str, Any]) -> str:
    part = parameters["part"]
    return f"{context.task.name}-v{FORMAT_VERSION}-{part['key']}-{part['target']}-{part['segment']}"


CACHED = CacheKeyFnPolicy(cache_key_fn=_segment_key)
RETRIED: dict[str, Any] = {
    "retries": RETRIES,
    "retry_delay_seconds": DELAYS,
    "retry_jitter_factor": JITTER,
    "retry_condition_fn": is_transient,
}
STORED: dict[str, Any] = {"cache_policy": CACHED, "persist_result": True, "result_serializer": "json"}


def part_of(config: str, handle: RunHandle, repository: str, target: str, segment: int) -> dict[str, Any]:
    """The one small argument of a segment's tasks; `key` makes cached results of another instant impossible."""
    key = f"{repository[:16]}-{handle.checkpoint.rsplit('-', 1)[-1]}-{handle.run_id}"
    return {"config": config, "run": handle.run_id, "key": key, "target": target, "segment": segment}


def export_stands(part: dict[str, Any]) -> bool:
    """Whether an earlier export of this segment is there and whole."""
    engine = engine_of(part["config"])
    directory = engine.run(part["run"]).directory
    return landed_before(engine, directory, part["target"], part["segment"]) is not None


@task(name="snapshot", task_run_name="snapshot {request.vm}", **RETRIED)
def snapshot(config: str, request: BackupRequest) -> RunHandle:
    """Hold one instant of all disks of the VM, or go on with a run that died."""
    return stages.snapshot(engine_of(config), request, CancelToken())


@task(name="export", task_run_name="export {part[target]} segment {part[segment]}", **RETRIED, **STORED)
def export(part: dict[str, Any]) -> dict[str, Any]:
    """Read one segment of the held instant and land what is new."""
    return _segment(stages.export, part)


@task(name="release", task_run_name="release {vm}", **RETRIED)
def release(config: str, run: str, vm: str) -> float:  # noqa: ARG001  (the VM is for the run's name)
    """End the backup job: the VM needs no more of us. Gives the seconds that it was held."""
    return stages.release(engine_of(config), run).held


@task(name="compress", task_run_name="compress {part[target]} segment {part[segment]}", **RETRIED)
def compress(part: dict[str, Any]) -> dict[str, Any]:
    """Turn a landing into sealed packs."""
    return _segment(stages.compress, part)


@task(name="place", task_run_name="place {part[target]} segment {part[segment]}", **RETRIED)
def place(part: dict[str, Any]) -> dict[str, Any]:
    """Make the packs durable on the tier."""
    return _segment(stages.place, part)


@task(name="verify", task_run_name="verify {part[target]} segment {part[segment]}", **RETRIED)
def verify(part: dict[str, Any]) -> dict[str, Any]:
    """Read the packs back from the tier and compare them with what the source gave."""
    return _segment(stages.verify, part)


@task(name="commit", task_run_name="commit {vm}", **RETRIED)
def commit(config: str, run: str, vm: str) -> PointSummary:  # noqa: ARG001  (the VM is for the run's name)
    """Write the restore point, last of all."""
    return stages.commit(engine_of(config), run)


def _segment(stage: Any, part: dict[str, Any]) -> dict[str, Any]:
    progress, cancel = controls(part["run"])
    result = stage(engine_of(part["config"]), part["run"], part["target"], part["segment"], progress, cancel)
    return asdict(result)
