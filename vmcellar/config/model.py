"""The shape of `vmcellar.yaml`. Sizes are bytes, times seconds, paths of this host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PrivateAttr, StringConstraints, model_validator

from vmcellar.config.catalogplace import CatalogPlace
from vmcellar.config.jobs import BackupJob, Storage
from vmcellar.config.placement import Placement
from vmcellar.config.prices import ARCHIVE_CLASSES, Prices
from vmcellar.config.problems import wrong_at
from vmcellar.config.remote import RemoteHost
from vmcellar.config.schedules import OptionalSchedule, Schedule
from vmcellar.config.secrets import HostPath, SecretReference
from vmcellar.config.section import Section
from vmcellar.config.tiers import TierSettings
from vmcellar.config.units import Duration, Size
from vmcellar.errors import UsageError
from vmcellar.memory import available_memory

LANDING_AUTO_LIMIT = 4 << 30
LANDING_FOLDER = Path("/dev/shm/vmcellar")  # noqa: S108 (a tmpfs on purpose; the folder is made for its owner alone)


class Tiers(Section):
    """Where packs are kept."""

    hot: TierSettings | None = Field(default=None, description="the repository: packs, index, points and keys")
    warm: TierSettings | None = Field(default=None, description="packs that no young point needs; a mirror of the rest")
    cold: TierSettings | None = Field(default=None, description="packs that only old points need; a mirror of the rest")

    @model_validator(mode="after")
    def _hot_reads_at_once(self) -> Self:
        if self.hot is not None and self.hot.storage_class in ARCHIVE_CLASSES:
            raise ValueError(
                f"hot: packs are read back after they are written, which {self.hot.storage_class} does not allow; "
                "make it the storage_class of cold, or take GLACIER_IR"
            )
        return self

    def within(self, folder: Path) -> Tiers:
        """The same with every relative path taken from `folder`."""
        named = {name: getattr(self, name) for name in type(self).model_fields}
        return self.model_copy(update={name: tier.within(folder) for name, tier in named.items() if tier is not None})


class Landing(Section):
    """Where disk bytes lie between the VM and the packs."""

    dir: HostPath = Field(default=LANDING_FOLDER, description="a folder on tmpfs (best with huge=within_size) or SSD")
    budget: Size | None = Field(
        default=None,
        description="the most bytes that lie there; default half of what is free there and in memory, up to 4 GiB",
    )
    direct: Size = Field(
        default=32 << 20,
        description="bytes that may be on their way from the VM to the compressors without landing; 0: all lands",
    )

    def budget_bytes(self) -> int:
        """The budget in bytes; without one, half of what the folder's file system and the memory have free now, at most
        4 GiB: what a tmpfs takes, the VMs of this host cannot have.
        """
        if self.budget is not None:
            return self.budget
        folder = self.dir
        while not folder.exists():
            folder = folder.parent
        free = os.statvfs(folder)
        return min(LANDING_AUTO_LIMIT, free.f_bavail * free.f_frsize // 2, available_memory() // 2)


class Libvirt(Section):
    """The hypervisor whose VMs are backed up."""

    uri: str = Field(default="qemu:///system", min_length=1, description="libvirt connection URI")
    remote: RemoteHost = Field(default=RemoteHost(), description="for a uri of another host: how its disks are read")

    def within(self, folder: Path) -> Libvirt:
        """The same with a relative path taken from `folder`."""
        remote = self.remote.model_copy(update={"certificates": folder / self.remote.certificates})
        return self.model_copy(update={"remote": remote})


ShareName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]


class Limits(Section):
    """How much of the host a backup may take."""

    vms: int = Field(default=2, ge=1, le=64, description="VMs backed up at once by one job")
    shared: dict[ShareName, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict,
        description="what several hosts share, such as a tier or a storage network: VMs backed up at once by all hosts",
    )
    workers: int | None = Field(
        default=None, ge=1, le=256, description="threads for compression; default two more than cores, at most 16"
    )
    connections: int = Field(default=2, ge=1, le=16, description="NBD connections per disk")
    segment: Size = Field(default=1 << 30, ge=1 << 20, description="changed bytes per segment, the unit of retry")
    freeze: Duration = Field(default=10, le=60, description="the longest a guest's file systems may stay frozen")
    sample: float = Field(
        default=0.001, ge=0, le=1, description="share of clean blocks that an incremental re-reads as a check"
    )

    @property
    def at_once(self) -> int:
        """VMs that this host may back up at once, with all of `shared` for itself: a run takes a place of each."""
        return min((self.vms, *self.shared.values()))


class Maintenance(Section):
    """What is done besides backups, when `vmcellar up` or `vmcellar deploy` runs it; `off` leaves a part out."""

    recover: OptionalSchedule = Field(
        default=Schedule(cron="17 * * * *"), description="settle what dead runs left on this host"
    )
    upkeep: OptionalSchedule = Field(
        default=Schedule(cron="30 6 * * *"), description="drop points by the jobs' retention, then collect garbage"
    )
    verify: OptionalSchedule = Field(
        default=Schedule(cron="0 8 * * sun"), description="check all maps and a share of the stored bytes"
    )
    prove: OptionalSchedule = Field(
        default=None, description="restore and compare the points with the highest risk, and drill the newest"
    )
    prove_minutes: float = Field(default=60, gt=0, description="no proof begins after this many minutes")
    prove_within: Duration = Field(
        default=30 * 86400, gt=0, description="with prove: a VM without a good proof or drill for this long is told of"
    )
    rebalance: OptionalSchedule = Field(
        default=Schedule(cron="0 7 * * *"), description="with warm or cold tiers: put packs where placement: says"
    )
    watch: OptionalSchedule = Field(
        default=Schedule(cron="*/15 * * * *"), description="look at all VMs and tiers, and tell who is to be told"
    )
    analyse: OptionalSchedule = Field(
        default=None, description="look at the history: tables and plots, and what follows from anomalies"
    )
    adapt: OptionalSchedule = Field(
        default=None, description="advise better schedules for VMs, and report the gain of what was applied"
    )
    adapt_apply: bool = Field(default=False, description="apply what adapt advises; else it is only shown")
    verify_sample: float = Field(default=0.05, gt=0, le=1, description="share of the stored bytes that verify reads")


class Config(Section):
    """All of `vmcellar.yaml`."""

    tiers: Tiers = Tiers()
    placement: Placement | None = Field(default=None, description="when packs go to which tier; default: all stay hot")
    key: SecretReference | None = Field(default=None, description="where the passphrase is")
    state: HostPath = Field(default=Path("/var/lib/vmcellar"), description="runs in progress, index cache")
    catalog: CatalogPlace = CatalogPlace()
    scratch: HostPath = Field(
        default=Path("/var/lib/libvirt/vmcellar"),
        description="scratch files and NBD sockets; QEMU's user must be able to write there",
    )
    landing: Landing = Landing()
    libvirt: Libvirt = Libvirt()
    limits: Limits = Limits()
    maintenance: Maintenance = Maintenance()
    notify: tuple[SecretReference, ...] = Field(
        default=(), description="where the addresses are of who is told: apprise URLs (mailto://, slack://, json://)"
    )
    ping: SecretReference | None = Field(default=None, description="where the URL is that each watch asks for")
    backups: tuple[BackupJob, ...] = ()

    _source: Path | None = PrivateAttr(None)

    @property
    def source(self) -> Path | None:
        """The file that this was read from; None when all are defaults."""
        return self._source

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        seen: dict[str, int] = {}
        for number, job in enumerate(self.backups):
            first = seen.setdefault(job.name, number)
            if first != number:
                said = "the job in line {line} has this name; give each its own name"
                raise wrong_at(("backups", number, "name"), said, ("backups", first, "name"))
        return self

    @model_validator(mode="after")
    def _tiers_of_placement_exist(self) -> Self:
        for name, _ in self.placement.limits() if self.placement else ():
            if getattr(self.tiers, name) is None:
                raise wrong_at(("placement", name), f"tiers.{name} is missing; say there where this tier is")
        return self

    def hot_tier(self) -> TierSettings:
        """Where the hot tier is; UsageError when the file names none."""
        if self.tiers.hot is None:
            raise UsageError(
                f"{self._source or 'vmcellar.yaml'}: tiers.hot is missing: no repository to work with",
                hint="add `tiers:` with `hot: STORAGE`, or type `vmcellar init --tier hot=STORAGE`",
            )
        return self._with_keep("hot", self.tiers.hot)

    def price_tables(self) -> dict[str, Prices]:
        """What each tier costs, by its name."""
        return {name: tier.price_table for name, tier in self.tiers if isinstance(tier, TierSettings)}

    def other_tiers(self) -> dict[str, TierSettings]:
        """The tiers behind hot by name, nearest first."""
        named = {"warm": self.tiers.warm, "cold": self.tiers.cold}
        return {name: self._with_keep(name, tier) for name, tier in named.items() if tier is not None}

    def _with_keep(self, name: str, tier: TierSettings) -> TierSettings:
        """For how long a lock holds: as the tier says, else for the shortest time that a job keeps its points."""
        if tier.lock is None or tier.lock.keep is not None:
            return tier
        times = [job.retention for job in self.backups if isinstance(job.retention, int)]
        if not times:
            raise UsageError(
                f"{self._source or 'vmcellar.yaml'}: tiers.{name}.lock.keep is missing, and no job keeps its points "
                "for a time",
                hint="add such as `keep: 30d`",
            )
        return tier.model_copy(update={"lock": tier.lock.model_copy(update={"keep": min(times)})})

    def is_hot(self, storage: Storage) -> bool:
        """Whether a job's `storage:` is the tier hot, by its name or by the same storage string."""
        if (storage.kind, storage.place) == ("tier", "hot"):
            return True
        return self.tiers.hot is not None and str(storage).rstrip("/") == self.tiers.hot.storage.rstrip("/")

    def job(self, name: str) -> BackupJob:
        """The entry of `backups:` with this name; UsageError that lists the names when there is none."""
        for job in self.backups:
            if job.name == name:
                return job
        names = ", ".join(job.name for job in self.backups) or "none"
        raise UsageError(
            f"{self._source or 'vmcellar.yaml'}: no backup job named {name}", hint=f"jobs under backups: are: {names}"
        )
