"""The parameters of flows as models, so that the UI shows a form with a field for each."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

START_PAUSED = "a VM that is off is started with its CPUs stopped while it is read, then stopped"


class FlowParameters(BaseModel):
    """Base: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: str = Field(default="", description="the vmcellar.yaml to use; empty: the usual place")


class BackupVm(FlowParameters):
    """Back up one VM."""

    vm: str = Field(min_length=1, description="the VM's name in libvirt")
    mode: Literal["auto", "full", "incremental", "differential"] = Field(
        default="auto",
        description="auto: incremental where possible; full: read everything; differential: since the last full",
    )
    job: str = Field(default="", description="the job under backups: that this belongs to, for the record")
    exclude_disks: tuple[str, ...] = Field(default=(), description="targets left out on purpose, as in vdb")
    exclude_paths: tuple[str, ...] = Field(
        default=(), description="paths of the guest whose files come back as zeroes, as in /var/log"
    )
    compression: str = Field(default="zstd:auto", description="zstd:auto, zstd:1 to zstd:19, or none")
    chunks: Literal["grid", "content"] = Field(default="grid", description="where chunks are cut")
    start_paused: bool = Field(default=False, description=START_PAUSED)


class BackupJob(FlowParameters):
    """Back up several VMs, or those that a job selects."""

    vms: tuple[str, ...] = Field(default=(), description="names of VMs; empty: those that the job selects")
    job: str = Field(default="", description="a job under backups: in vmcellar.yaml; empty: the VMs named above")
    except_vms: tuple[str, ...] = Field(default=(), description="VMs of the job that another schedule backs up")
    full: bool = Field(default=False, description="read everything, whatever the job says")
    start_paused: bool = Field(default=False, description=START_PAUSED)
    keep_paths: bool = Field(default=False, description="leave no path of a guest out, whatever the job says")
    at_once: int = Field(default=0, ge=0, le=64, description="VMs at the same time; 0: limits.vms of the configuration")
    scheduled: bool = Field(
        default=False,
        description="begun by a schedule: window and spread hold, and only the newest run works",
    )

    @property
    def what(self) -> str:
        """For the run's name."""
        return f"job {self.job}" if self.job else ", ".join(self.vms)


class RestoreVm(FlowParameters):
    """Restore one point into a folder."""

    point: str = Field(min_length=1, description="a point's id, a unique beginning of one, or VM@latest")
    directory: str = Field(min_length=1, description="an empty folder on the worker's host for the disk images")
    format: Literal["qcow2", "raw"] = Field(default="qcow2", description="the images' format")
    disks: tuple[str, ...] = Field(default=(), description="targets to restore; empty: all")
    best_effort: bool = Field(default=False, description="restore what can be read and list what is lost")
    define: str = Field(default="", description="define the restored VM in libvirt under this new name")


class ThawPoint(FlowParameters):
    """Thaw a point that lies in an archive class, and restore it when it can be read. Costs money."""

    point: str = Field(min_length=1, description="a point's id, a unique beginning of one, or VM@latest")
    speed: Literal["bulk", "standard", "expedited"] = Field(default="standard", description="the slower, the cheaper")
    days: int = Field(default=3, ge=1, le=365, description="days that the packs stay readable")
    directory: str = Field(default="", description="an empty folder for the disk images; empty: thaw, restore nothing")
    format: Literal["qcow2", "raw"] = Field(default="qcow2", description="the images' format")
    disks: tuple[str, ...] = Field(default=(), description="targets to thaw and restore; empty: all")
    define: str = Field(default="", description="define the restored VM in libvirt under this new name")
    fetch: bool = Field(default=False, description="copy packs to the hot tier as they become readable; needs its room")
    looks: int = Field(default=0, ge=0, description="how often it was looked before; leave it at 0")

    @property
    def restore(self) -> RestoreVm | None:
        """The restore that follows; None where only a thaw was asked for."""
        if not self.directory:
            return None
        return RestoreVm(
            config=self.config,
            point=self.point,
            directory=self.directory,
            format=self.format,
            disks=self.disks,
            define=self.define,
        )


class VerifyRepository(FlowParameters):
    """Check what is stored."""

    point: str = Field(default="", description="a point to check; empty: all")
    deep: bool = Field(default=True, description="read and decode every chunk, not only the maps and the index")
    sample: float = Field(
        default=1.0, gt=0, le=1, description="of all points: the share of the packs that is read, oldest check first"
    )

    @property
    def what(self) -> str:
        """For the run's name."""
        return self.point or "all points"


class RebalanceTiers(FlowParameters):
    """Put packs where `placement:` says."""

    at_once: int = Field(default=4, ge=1, le=64, description="packs that are moved at the same time")
    rate: int = Field(default=0, ge=0, description="the most bytes per second; 0: no limit")
    dry_run: bool = Field(default=False, description="only say what would be moved")


class DrillPoint(FlowParameters):
    """Restore and boot one point, check it, throw it away."""

    point: str = Field(min_length=1, description="a point's id, a unique beginning of one, or VM@latest")
    keep: bool = Field(default=False, description="leave the VM running, to look at it")


class VerifyRestores(FlowParameters):
    """Prove the points with the highest risk."""

    vms: tuple[str, ...] = Field(default=(), description="names of VMs; empty: all that have points")
    minutes: float = Field(default=60, gt=0, description="no proof begins after this many minutes")
    most: int = Field(default=1000, ge=1, description="points at most")
    drills: bool = Field(default=True, description="boot the newest point of a VM when its last drill is old")
    drill_days: float = Field(default=7, ge=0, description="how old the last drill may be, in days")
    against_source: bool = Field(
        default=False,
        description="compare each newest point with its running VM as well; holds an instant of it, as a backup does",
    )

    @property
    def what(self) -> str:
        """For the run's name."""
        return ", ".join(self.vms) or "all VMs"


class AnalyseHistory(FlowParameters):
    """Look at the history of backups."""


class AdaptSchedules(FlowParameters):
    """Advise when and how often to back up each VM, apply it, or take it back."""

    action: Literal["show", "apply", "undo"] = Field(
        default="show", description="show: change nothing; apply: make it the schedules; undo: take the last one back"
    )
    budget: float = Field(
        default=1.05, ge=0.1, le=10, description="work that may be done, as a share of what today's schedules cost"
    )
    even: bool = Field(default=True, description="serve no class of RPO worse than today")
    where: str = Field(default="here", description="the name under which this host's flows are deployed")


class Recover(FlowParameters):
    """Settle what dead runs left."""

    vm: str = Field(default="", description="the VM to settle; empty: all")
    resume: bool = Field(default=False, description="keep runs that the next backup can go on with, their VMs held")

    @property
    def what(self) -> str:
        """For the run's name."""
        return self.vm or "all VMs"


class Upkeep(FlowParameters):
    """Drop points by the jobs' retention, and free what no point needs."""

    dry_run: bool = Field(default=False, description="only say what would be done")
    grace: str = Field(default="24h", description="how long what no point needs stays after it was marked, as in 24h")

    @property
    def what(self) -> str:
        """For the run's name."""
        return "plan" if self.dry_run else "all points"


class Watch(FlowParameters):
    """Look at all VMs and tiers, and tell people what began and what is over."""


class Schedules(FlowParameters):
    """Bring the schedules on the server in line with the configuration and what was advised."""

    where: str = Field(default="here", description="the name under which this host's flows are deployed")
