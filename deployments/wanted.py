"""The deployments of one host: a form for every flow, and one deployment for every job of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
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
from tasks.watch import BEGAN, JOB, KIND, LATE, UNPROVEN
from vmcellar.policy.timetable import maintenance_entries

if TYPE_CHECKING:
    from vmcellar.config.jobs import BackupJob
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
    acting = {watch_fleet.name: _at_once(place), verify_restores.name: _when_unproven(config, place)}
    forms = [
        Wanted(
            flow,
            where,
            (TAG, place),
            {"request": {"where": where} if flow in OF_A_PLACE else {}},
            automations=acting.get(flow.name, ()),
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
            _when_late(job, place),
        )
        for job in (config.backups if config else ())
    ]
    return [*forms, *jobs]


LOOK, RUN, PROVE = "look at once when ", "run job ", "prove at once when "
"""How the names of automations go on after the place."""
LATE_WITHIN = timedelta(hours=1)
UNPROVEN_WITHIN = timedelta(days=1)
"""However many VMs are late or unproven in this time: one run."""


def automations_of(where: str) -> tuple[str, ...]:
    """How the names of all automations of a place begin, also of those that are not wanted any more."""
    return tuple(f"{TAG}-{where}: {verb}" for verb in (LOOK, RUN, PROVE))


def _when_late(job: BackupJob, place: str) -> tuple[WantedAutomation, ...]:
    """Runs a job as its schedule does, so within its window, and not beside a run of it that goes on."""
    if job.rpo is None or job.schedule is None:
        return ()
    name = f"{place}: {RUN}{job.name} at once when a VM of it is late"
    late: dict[str, str | list[str]] = {KIND: LATE, JOB: job.name}
    trigger = EventTrigger(expect={BEGAN}, match=late, match_related=_of(place), within=LATE_WITHIN)
    return (WantedAutomation(name, trigger, {"job": job.name, "scheduled": True}),)


def _when_unproven(config: Config | None, place: str) -> tuple[WantedAutomation, ...]:
    """Proves what has the highest risk, as the schedule does, where there is one."""
    schedules = maintenance_entries(config)[verify_restores.name] if config else []
    unproven: dict[str, str | list[str]] = {KIND: UNPROVEN}
    trigger = EventTrigger(expect={BEGAN}, match=unproven, match_related=_of(place), within=UNPROVEN_WITHIN)
    name = f"{place}: {PROVE}a VM is unproven"
    return tuple(WantedAutomation(name, trigger, dict(each.request)) for each in schedules)


def _of(place: str) -> dict[str, str | list[str]]:
    return {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{place}"}


def _at_once(place: str) -> tuple[WantedAutomation, ...]:
    """Automations that look at the fleet, and so tell people, when a backup of this place failed, or evidence speaks
    against a point, or an anomaly was found, instead of a quarter of an hour later.
    """
    backups = {"prefect.resource.role": "flow", "prefect.resource.name": [backup_vm.name, backup_job.name]}
    made: dict[str, dict[str, Any]] = {
        "a backup failed": {"expect": {"prefect.flow-run.Failed"}, "match_related": [_of(place), backups]},
        "a point or a VM looks bad": {"expect": {UNVERIFIED, ANOMALY}, "match_related": _of(place)},
    }
    return tuple(WantedAutomation(f"{place}: {LOOK}{when}", EventTrigger(**options)) for when, options in made.items())
