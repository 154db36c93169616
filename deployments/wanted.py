"""The deployments of one host: a form for every flow, and one deployment for every job of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prefect import Flow
from prefect.deployments.runner import RunnerDeployment
from prefect.events import EventTrigger
from prefect.types.entrypoint import EntrypointType

from deployments.automations import WantedAutomation
from flows.adapting import adapt_schedules
from flows.analysis import analyse_history
from flows.backup import backup_job, backup_vm
from flows.lifecycle import rebalance_tiers
from flows.recover import recover_host
from flows.restore import restore_vm
from flows.schedules import reconcile_schedules
from flows.thaw import thaw_point
from flows.upkeep import upkeep_repository
from flows.verify import drill_point, verify_repository, verify_restores
from flows.watch import watch_fleet
from tasks.evidence import ANOMALY, UNVERIFIED
from tasks.timetable import SERVED, job_deployment

if TYPE_CHECKING:
    from vmcellar.config.model import Config

TAG = "vmcellar"
JOB_TAG = "vmcellar-job"
VERSION: dict[str, Any] = {"version_type": "prefect:simple"}

FORMS: tuple[Flow[..., Any], ...] = (
    backup_vm,
    backup_job,
    restore_vm,
    thaw_point,
    verify_repository,
    verify_restores,
    drill_point,
    rebalance_tiers,
    recover_host,
    watch_fleet,
    upkeep_repository,
    analyse_history,
    adapt_schedules,
    reconcile_schedules,
)
"""Flows that people start from the UI's form."""
OF_A_PLACE: tuple[Flow[..., Any], ...] = (adapt_schedules, reconcile_schedules)
"""Those whose form has to say under which name the host's flows are deployed: what their default says is one host's."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One deployment as it should be."""

    flow: Flow[..., Any]
    name: str
    tags: tuple[str, ...]
    parameters: dict[str, Any] = field(default_factory=dict)
    description: str | None = None
    automations: tuple[WantedAutomation, ...] = ()

    @property
    def full_name(self) -> str:
        """As Prefect names it: FLOW/DEPLOYMENT."""
        return f"{self.flow.name}/{self.name}"

    def deployment(self, **options: Any) -> RunnerDeployment:
        """Without schedules: `flows.schedules` owns those. Entry points are dotted names: a path would load the module
        a second time under another name, and mean another file from another working directory. The version is that of
        the flow: Prefect would look for one in the environment and in git, of whatever folder this is called in.
        """
        return RunnerDeployment.from_flow(
            self.flow,
            self.name,
            parameters=self.parameters,
            description=self.description,
            tags=list(self.tags),
            entrypoint_type=EntrypointType.MODULE_PATH,
            **{**VERSION, **options},
        )


def wanted(config: Config | None, where: str = SERVED) -> list[Wanted]:
    """All deployments; without a configuration, the forms alone."""
    place = f"{TAG}-{where}"
    forms = [
        Wanted(
            flow,
            where,
            (TAG, place),
            {"request": {"where": where} if flow in OF_A_PLACE else {}},
            automations=_at_once(place) if flow is watch_fleet else (),
        )
        for flow in FORMS
    ]
    jobs = [
        Wanted(
            backup_job,
            job_deployment(job.name, where),
            (TAG, JOB_TAG, place),
            {"request": {"job": job.name}},
            f"{', '.join(job.domains)}: {job.schedule or 'by hand only'}",
        )
        for job in (config.backups if config else ())
    ]
    return [*forms, *jobs]


def _at_once(place: str) -> tuple[WantedAutomation, ...]:
    """Automations that look at the fleet, and so tell people, when a backup of this place failed, or evidence speaks
    against a point, or an anomaly was found, instead of a quarter of an hour later.
    """
    of_this_place = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{place}"}
    backups = {"prefect.resource.role": "flow", "prefect.resource.name": [backup_vm.name, backup_job.name]}
    made: dict[str, dict[str, Any]] = {
        "a backup failed": {"expect": {"prefect.flow-run.Failed"}, "match_related": [of_this_place, backups]},
        "a point or a VM looks bad": {"expect": {UNVERIFIED, ANOMALY}, "match_related": of_this_place},
    }
    return tuple(
        WantedAutomation(f"{place}: look at once when {when}", EventTrigger(**options))
        for when, options in made.items()
    )
