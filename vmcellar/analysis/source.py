"""Where a notebook gets its data: the catalog of this host, or, while that has no history, a made-up one that says so.

No key is needed but for a heat map, which opens the repository: the catalog lies in the state directory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, tzinfo
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vmcellar.analysis import history as tables
from vmcellar.analysis.capacity import TierUse
from vmcellar.analysis.grid import seconds_of
from vmcellar.analysis.heat import COLUMNS, HeatMap, heat_map
from vmcellar.analysis.quality import quarantine
from vmcellar.analysis.sample import TUNING, generate
from vmcellar.catalog.catalog import Catalog, repositories
from vmcellar.catalog.databases import database_of
from vmcellar.config.load import find_config, load_config
from vmcellar.errors import PermanentError, UsageError
from vmcellar.policy.localzone import local_zone
from vmcellar.repository.repository import Repository

if TYPE_CHECKING:
    from pathlib import Path

    from vmcellar.config.model import Config

LEAST_RUNS = 50
"""With fewer runs than this a catalog has nothing to plot yet."""
HEAT_POINTS, AFTER_DAYS = 80, 5.0
"""Backups in a heat map around a moment, and how many days of them may lie after it."""
DAY = 86400.0
SAMPLE = replace(TUNING, seed=1, vms=18, days=120, trouble_share=0.25)


@dataclass(frozen=True, slots=True)
class Source:
    """Good rows of a history (of a catalog: its last 25 weeks), the bad ones with their reasons, points that are there
    or tell of restores (`history.there`), evidence, use of tiers (see `history.py`); `rpo` and `rto` targets in seconds
    by VM. `now` is the moment that all is looked at from, `origin` says where it is from.
    """

    origin: str
    now: pd.Timestamp
    frame: pd.DataFrame
    bad: pd.DataFrame
    points: pd.DataFrame
    evidence: pd.DataFrame
    tiers: pd.DataFrame
    rpo: dict[str, float]
    rto: dict[str, float]
    settings: Config | None = None
    zone: tzinfo = UTC
    """By which clock the guests live; made-up ones know no summer time."""
    older: pd.DataFrame | None = None
    """What lies there of before the history begins, as `history.held_before` has it."""

    @property
    def standing(self) -> list[TierUse]:
        """The tiers as they were last looked at."""
        newest = self.tiers.sort_values("time").groupby("tier").tail(1)
        columns = zip(newest["tier"], newest["bytes_used"], newest["bytes_free"], strict=True)
        return [TierUse(str(tier), int(used), None if pd.isna(free) else int(free)) for tier, used, free in columns]

    def last(self, days: float) -> pd.DataFrame:
        """The good rows of the last days."""
        return self.frame[self.frame["started"] > self.now - pd.Timedelta(days=days)]

    def points_before(self, vm: str, at: float, most: int = 5) -> pd.DataFrame:
        """The newest points of a VM that were taken before a moment (seconds since the epoch), newest first."""
        own = self.points[(self.points["vm"] == vm) & self.points["gone"].isna()]
        before = own[seconds_of(own["time"]) < at].sort_values("time", ascending=False)  # as exact as `at` is
        return before[["point", "time", "kind", "verified"]].head(most).reset_index(drop=True)

    def heat_map(self, vm: str, disk: str, around: float) -> HeatMap | None:
        """Where a disk changed before and after a moment (seconds since the epoch): from the repository, which is
        opened for it, or made up as the history is. Half of what is shown lies before the moment, if there is as much.
        None where fewer than two points with the disk are left, as the history knows more than the repository holds.
        """
        until = self._shown_until(vm, around)
        if self.settings is None:
            return _heat_of(self.frame[seconds_of(self.frame["started"]) <= until], vm, disk)
        repository = Repository.open(self.settings)
        try:
            return heat_map(repository, vm, disk, most_points=HEAT_POINTS, until=until)
        except PermanentError:
            return None
        finally:
            repository.close()

    def _shown_until(self, vm: str, around: float) -> float:
        times = np.sort(seconds_of(self.points.loc[self.points["vm"] == vm, "time"]))
        after = times[(times > around) & (times <= around + AFTER_DAYS * DAY)][: HEAT_POINTS // 2]
        return float(after[-1]) if len(after) else around


def load(config: Path | None = None) -> Source:
    """The catalog of the configuration (as commands find it), or a made-up history when there is none to speak of. Of
    several repositories it is the one that was backed up to last: which one the configuration means, its tiers tell.
    """
    try:
        settings = load_config(find_config(config))
    except UsageError:
        if config is not None:
            raise
        return sample()
    found = _from_catalog(settings)
    return found or sample()


def _from_catalog(settings: Config) -> Source | None:
    database = database_of(settings)
    known = repositories(database)
    if not known:
        return None
    catalog = Catalog(database, max(known, key=lambda name: known[name]))
    now = pd.Timestamp.now("UTC")
    good, bad = quarantine(tables.recent(catalog, now.timestamp()))
    if good["run_id"].nunique() < LEAST_RUNS:
        return None
    vms = [str(vm) for vm in good["vm"].unique()]
    return Source(
        f"{database.name}: {good['run_id'].nunique()} runs of {len(vms)} VMs",
        now,
        good,
        bad,
        tables.there(catalog),
        tables.evidence(catalog),
        tables.tier_use(catalog),
        targets(settings, vms, "rpo"),
        targets(settings, vms, "rto"),
        settings,
        local_zone(),
        tables.held_before(catalog, now.timestamp()),
    )


def targets(settings: Config, vms: list[str], which: str) -> dict[str, float]:
    """The strictest `rpo` or `rto` in seconds that any job demands of each VM."""
    found: dict[str, float] = {}
    for job in settings.backups:
        wanted = getattr(job, which)
        for vm in vms:
            if wanted is not None and job.selects(vm):
                found[vm] = min(wanted, found.get(vm, wanted))
    return found


def sample(seed: int = 1) -> Source:
    """A made-up history of 18 VMs over 120 days, among them some trouble; points, drills and targets follow from it."""
    frame, bad = quarantine(generate(replace(SAMPLE, seed=seed)).frame)
    now = frame["started"].max() + pd.Timedelta(hours=1)
    points = _points_of(frame)
    gaps = points.groupby("vm")["time"].diff().dt.total_seconds()
    usual = gaps.groupby(points["vm"]).median()
    rpo = {str(vm): 1.5 * float(seconds) for vm, seconds in usual.items()}
    used = int(frame[frame["ok"]]["bytes_stored"].sum())
    tiers = pd.DataFrame({"tier": ["hot"], "time": [now], "bytes_used": [used], "bytes_free": [used * 0.35]})
    drills = _drills_of(points, seed)
    origin = f"a made-up history (seed {seed}): {frame['run_id'].nunique()} runs of {frame['vm'].nunique()} VMs"
    return Source(origin, now, frame, bad, points, drills, tiers, rpo, dict.fromkeys(rpo, 1800.0))


def _points_of(frame: pd.DataFrame) -> pd.DataFrame:
    by_run = frame[frame["ok"]].astype({"vm": "object", "kind": "object"}).groupby("run_id", sort=False)
    points = by_run.agg(
        vm=("vm", "first"), time=("started", "first"), kind=("kind", "first"), disks=("disk", "size"),
        bytes_size=("bytes_size", "sum"), bytes_stored=("bytes_stored", "sum"),
    ).reset_index()  # fmt: skip
    points["point"] = points["run_id"]
    points["verified"] = True
    points["gone"] = pd.NaT
    return points.sort_values(["vm", "time"], ignore_index=True)


def _heat_of(frame: pd.DataFrame, vm: str, disk: str) -> HeatMap:
    """Its usual change lies in a tenth of the disk; what is far beyond it lies everywhere."""
    own = frame[(frame["vm"] == vm) & (frame["disk"] == disk) & frame["ok"] & (frame["kind"] == "incremental")]
    usual = 0.5 * float(own["bytes_changed"].quantile(0.9))
    own = own.tail(HEAT_POINTS)
    size, changed = int(own["bytes_size"].max()), own["bytes_changed"].to_numpy(dtype=float)
    cell = -(-size // COLUMNS)
    random = np.random.default_rng(size % 97)
    place = random.random(COLUMNS)
    busy = np.where(place > 0.85, 10 ** random.uniform(-3, 0, COLUMNS), 0.0) * random.random((len(own), COLUMNS))
    share = (changed / (4 * usual))[:, None]
    rows = np.where(share > 2, 0.3 + 0.7 * place, np.where(busy > 1e-3, busy * share, 0.0))
    times = tuple(moment.to_pydatetime() for moment in own["started"])
    return HeatMap(vm, disk, size, cell, tuple(own["run_id"]), times, np.clip(rows, 0.0, 1.0))


def _drills_of(points: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Two VMs in three were drilled, at 250 MiB/s with some spread."""
    random = np.random.default_rng(seed)
    newest = points.groupby("vm").tail(1)
    drilled = newest[np.arange(len(newest)) % 3 != 0]
    seconds = 40 + drilled["bytes_size"].to_numpy() / (250 << 20) * random.lognormal(0, 0.25, len(drilled))
    return pd.DataFrame(
        {
            "point": drilled["point"].to_numpy(), "vm": drilled["vm"].to_numpy(), "time": drilled["time"].to_numpy(),
            "kind": "drill", "ok": True, "seconds": seconds, "rto_seconds": seconds, "detail": "",
        }
    )  # fmt: skip
