"""The parameters of flows as models, so that the UI shows a form with a name, a help text and a safe default for each.

What the form would let pass and the engine refuses is refused here, before a run begins.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from vmcellar.config.jobs import ZSTD_LEVELS, parse_compression
from vmcellar.config.units import parse_duration, parse_rate

POINT = "a point's id, a unique beginning of one, or `VM@latest` (the newest of that VM)"
START_PAUSED = "a VM that is off is started with its CPUs stopped while it is read, then stopped; off: it is left alone"
FORMAT = "qcow2 grows with its data; raw is read by everything"
DEFINE = "define the restored VM in libvirt under this new name; empty: write the disk images alone"
WHERE = "the name under which this host's flows are deployed: `here` for `vmcellar up`, else the host's name"
COMPRESSIONS = ["zstd:auto", *(f"zstd:{level}" for level in ZSTD_LEVELS), "none"]


def _as_form(schema: dict[str, Any]) -> None:
    """The UI sorts fields by `position`, as PostgreSQL keeps no order of keys; what is seldom changed comes last."""
    fields = schema.get("properties", {})
    for position, name in enumerate(sorted(fields, key="config".__eq__)):
        fields[name]["position"] = position


def _span(text: str) -> str:
    parse_duration(text)
    return text


def _rate(text: str) -> str:
    if text:
        parse_rate(text)
    return text


Compression = Annotated[str, AfterValidator(parse_compression), Field(json_schema_extra={"enum": [*COMPRESSIONS]})]
Span = Annotated[str, AfterValidator(_span), Field(json_schema_extra={"pattern": r"^[0-9.]+ *[smhdwy]$"})]
Rate = Annotated[str, AfterValidator(_rate), Field(json_schema_extra={"pattern": r"^([0-9.]+ *[A-Za-z]*/s)?$"})]


class FlowParameters(BaseModel):
    """Base: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_as_form)

    config: str = Field(
        default="",
        title="Configuration file",
        description="path of the `vmcellar.yaml` on the host that runs this; empty: the one that host works with",
    )


class BackupVm(FlowParameters):
    """Back up one VM."""

    vm: str = Field(min_length=1, title="VM", description="the VM's name in libvirt (`virsh list --all`)")
    mode: Literal["auto", "full", "incremental", "differential"] = Field(
        default="auto",
        title="Mode",
        description="auto: incremental where possible; full: read everything; incremental: as auto, but fails where "
        "there is no point yet; differential: what changed since the last full",
    )
    exclude_disks: tuple[str, ...] = Field(
        default=(), title="Disks to leave out", description="targets that are left out on purpose, as in `vdb`"
    )
    exclude_paths: tuple[str, ...] = Field(
        default=(),
        title="Paths to leave out",
        description="paths of the guest whose files come back as zeroes, as in `/var/log`",
    )
    start_paused: bool = Field(default=False, title="Start paused if off", description=START_PAUSED)
    job: str = Field(
        default="",
        title="Job",
        description="the job under `backups:` that this counts for: its `rpo:`, retention and hooks hold; empty: none",
    )
    compression: Compression = Field(
        default="zstd:auto",
        title="Compression",
        description="zstd:auto chooses by what the data gives; a higher level stores less and takes more CPU time",
    )
    chunks: Literal["grid", "content"] = Field(
        default="grid",
        title="Chunks",
        description="grid: cut at fixed places; content: where the data says so, which finds what VMs that were "
        "installed apart share, for more CPU time at a restore",
    )


class BackupJob(FlowParameters):
    """Back up several VMs, or those that a job selects."""

    job: str = Field(
        default="", title="Job", description="a job under `backups:` in vmcellar.yaml; empty: the VMs named below"
    )
    vms: tuple[str, ...] = Field(
        default=(), title="VMs", description="names of VMs in libvirt; empty: those that the job selects"
    )
    except_vms: tuple[str, ...] = Field(
        default=(), title="VMs to leave out", description="VMs of the job that are not backed up by this run"
    )
    full: bool = Field(default=False, title="Read everything", description="a full backup, whatever the job says")
    start_paused: bool = Field(default=False, title="Start paused if off", description=START_PAUSED)
    keep_paths: bool = Field(
        default=False, title="Keep all paths", description="leave no path of a guest out, whatever the job says"
    )
    at_once: int = Field(
        default=0,
        ge=0,
        le=64,
        title="VMs at the same time",
        description="0: as many as `limits.vms` of the configuration says",
    )
    scheduled: bool = Field(
        default=False,
        title="Begun by a schedule",
        description="leave it off by hand; on: the job's window and spread hold, and only the newest run works",
    )

    @property
    def what(self) -> str:
        """For the run's name."""
        return f"job {self.job}" if self.job else ", ".join(self.vms)


class RestoreVm(FlowParameters):
    """Restore one point into a folder. Nothing that is there is written over, and the old VM is left as it is."""

    point: str = Field(min_length=1, title="Point", description=POINT)
    directory: str = Field(
        min_length=1,
        title="Folder",
        description="where the disk images go, on the host that runs this: a new or empty folder with the space",
    )
    format: Literal["qcow2", "raw"] = Field(default="qcow2", title="Image format", description=FORMAT)
    disks: tuple[str, ...] = Field(
        default=(), title="Disks", description="targets to restore, as in `vda`; empty: all of the point"
    )
    define: str = Field(default="", title="Define as", description=DEFINE)
    best_effort: bool = Field(
        default=False,
        title="Despite damage",
        description="restore what can be read, and list what is lost; off: damage ends the restore and nothing is left",
    )


class ThawPoint(FlowParameters):
    """Thaw a point that lies in an archive class, and restore it when it can be read. **Costs money**: `vmcellar thaw
    POINT` says how much, and asks before it does anything.
    """

    point: str = Field(min_length=1, title="Point", description=POINT)
    speed: Literal["bulk", "standard", "expedited"] = Field(
        default="standard",
        title="Speed",
        description="the slower, the cheaper: bulk takes half a day to two, expedited minutes, if there is one",
    )
    days: int = Field(
        default=3, ge=1, le=365, title="Days", description="how long the packs stay readable; each day is paid for"
    )
    directory: str = Field(
        default="",
        title="Folder",
        description="where the disk images go, on the host that runs this: a new or empty folder; empty: thaw, and "
        "restore nothing",
    )
    format: Literal["qcow2", "raw"] = Field(default="qcow2", title="Image format", description=FORMAT)
    disks: tuple[str, ...] = Field(
        default=(), title="Disks", description="targets to thaw and restore, as in `vda`; empty: all of the point"
    )
    define: str = Field(default="", title="Define as", description=DEFINE)
    fetch: bool = Field(
        default=False,
        title="Copy to hot",
        description="copy packs to the hot tier as they become readable, which needs the room there",
    )
    looks: int = Field(
        default=0, ge=0, title="Looks so far", description="leave it at 0: the runs that follow count on from there"
    )

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
    """Check what is stored. Reads; mends nothing."""

    point: str = Field(default="", title="Point", description=f"{POINT}; empty: all points of all VMs")
    deep: bool = Field(
        default=True, title="Read everything", description="read and decode every chunk; off: the maps and the index"
    )
    sample: float = Field(
        default=1.0,
        gt=0,
        le=1,
        title="Share of the packs",
        description="of all points: 1 reads every pack, 0.1 the tenth whose last check is the oldest",
    )

    @property
    def what(self) -> str:
        """For the run's name."""
        return self.point or "all points"


class RebalanceTiers(FlowParameters):
    """Put packs where `placement:` of the configuration says."""

    dry_run: bool = Field(default=False, title="Only say it", description="move nothing, and say what would move")
    rate: Rate = Field(
        default="", title="Rate", description="the most that is moved in a second, as in `100MiB/s`; empty: no limit"
    )
    at_once: int = Field(
        default=4, ge=1, le=64, title="Packs at the same time", description="how many packs are moved at the same time"
    )

    @property
    def bytes_per_second(self) -> int | None:
        """The limit; None for none."""
        return parse_rate(self.rate) if self.rate else None


class DrillPoint(FlowParameters):
    """Restore and boot one point, check it, throw it away. The VM itself is not touched, and the copy has no network
    unless the job's `drill:` names an isolated one.
    """

    point: str = Field(min_length=1, title="Point", description=POINT)
    keep: bool = Field(
        default=False,
        title="Leave it running",
        description="leave the copy running, to look at it, until `vmcellar drill --clear`",
    )


class VerifyRestores(FlowParameters):
    """Prove the points with the highest risk: restore each, hold it against what was read, throw it away."""

    vms: tuple[str, ...] = Field(default=(), title="VMs", description="names of VMs; empty: all that have points")
    minutes: float = Field(
        default=60, gt=0, title="Minutes", description="no proof begins after this many; one that has begun ends"
    )
    most: int = Field(default=1000, ge=1, title="Points at most", description="how many points are proven at most")
    drills: bool = Field(
        default=True, title="Drill as well", description="boot the newest point of a VM when its last drill is old"
    )
    drill_days: float = Field(
        default=7, ge=0, title="Days between drills", description="how old a VM's last drill may be; 0: drill each"
    )
    against_source: bool = Field(
        default=False,
        title="Compare with the running VM",
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
        default="show",
        title="Action",
        description="show: change nothing; apply: make the advice the schedules; undo: take the last advice back",
    )
    budget: float = Field(
        default=1.05,
        ge=0.1,
        le=10,
        title="Budget",
        description="work that may be done, as a share of what today's schedules cost: 1.05 is 5 % more",
    )
    even: bool = Field(
        default=True, title="Nobody worse off", description="serve no class of RPO worse than today's schedules do"
    )
    where: str = Field(default="here", min_length=1, title="Deployed as", description=WHERE)


class Recover(FlowParameters):
    """Settle what dead runs left. What is at work is left alone."""

    vm: str = Field(default="", title="VM", description="the VM to settle; empty: all")
    resume: bool = Field(
        default=False,
        title="Keep what can go on",
        description="keep runs that the next backup can go on with, their VMs held; off: let all VMs go at once",
    )

    @property
    def what(self) -> str:
        """For the run's name."""
        return self.vm or "all VMs"


class Upkeep(FlowParameters):
    """Drop points by the jobs' retention, and free what no point needs."""

    dry_run: bool = Field(default=False, title="Only say it", description="change nothing, and say what would go")
    grace: Span = Field(
        default="24h",
        title="Grace time",
        description="a run marks what no point needs, and one that comes this much later frees it, as in `24h`",
    )

    @property
    def what(self) -> str:
        """For the run's name."""
        return "plan" if self.dry_run else "all points"


class Watch(FlowParameters):
    """Look at all VMs and tiers, and tell people what began and what is over."""


class Schedules(FlowParameters):
    """Bring the schedules on the server in line with the configuration and what was advised."""

    where: str = Field(default="here", min_length=1, title="Deployed as", description=WHERE)
