"""What a Prefect server has seen of flows: their runs, tasks and artifacts, asked through its own client."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterName,
)
from prefect.client.schemas.objects import Artifact, FlowRun, TaskRun

from lab.waiting import wait_for


class Seen:
    """`with Seen() as seen:` uses the server of the current settings. One thread."""

    def __init__(self) -> None:
        self.client = get_client(sync_client=True)

    def __enter__(self) -> Self:
        self.client.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.__exit__(kind, error, trace)

    def flow_run(self, name: str) -> FlowRun:
        """The newest flow run of this name."""
        found = self.client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))
        assert found, f"no flow run {name}"
        return max(found, key=lambda run: str(run.created))

    def state(self, run_id: UUID) -> Any:
        """The state of a flow run."""
        return self.client.read_flow_run(run_id).state

    def ended(self, run_id: UUID, seconds: float = 60) -> Any:
        """The final state of a flow run, once it has one."""
        wait_for(lambda: self.state(run_id).is_final(), f"flow run {run_id} to end", seconds=seconds)
        return self.state(run_id)

    def tasks(self, flow_run: FlowRun, names: Sequence[str]) -> dict[str, TaskRun]:
        """The task runs of a flow run by name, once all of `names` have ended: the server is told of them in events,
        which reach it a little later.
        """

        def all_there() -> dict[str, TaskRun] | None:
            filters = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id]))
            found = {run.name: run for run in self.client.read_task_runs(flow_run_filter=filters)}
            states = [found[name].state if name in found else None for name in names]
            ended = all(state is not None and state.is_final() for state in states)
            return found if ended else None

        found = wait_for(all_there, f"the ends of {names}", seconds=60)
        assert found is not None
        return found

    def artifacts(self, flow_run: FlowRun) -> dict[str | None, Artifact]:
        """The artifacts of a flow run by key."""
        filters = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run.id]))
        return {artifact.key: artifact for artifact in self.client.read_artifacts(artifact_filter=filters)}


def upstream(run: TaskRun, among: dict[str, TaskRun]) -> set[str]:
    """The names of the task runs that a task run was told to wait for."""
    names = {task.id: name for name, task in among.items()}
    return {names[entry.id] for entry in run.task_inputs.get("wait_for", []) if hasattr(entry, "id")}
