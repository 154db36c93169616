"""Backup histories with a known truth: for tests, for figures, and for trying the analysis where no history is yet.

Every disk belongs to a class that says how its change comes about (`CLASSES`); trouble of a known kind begins at a
known hour for some VMs (`TROUBLES`). Everything follows from the seed. `TUNING` is what thresholds were chosen on;
`HOLDOUT` differs in noise, seasons, wander, sizes of growth, shifts and attacks, and was looked at for the figures of
docs/analysis.md only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vmcellar.analysis.history import HISTORY

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

CLASSES = ("office", "nightly", "daily", "month-end", "growth", "shift", "flat", "bursty", "idle")
"""Working hours of weekdays; a nightly batch; a daily wave without weekends; office with month ends; office that
grows; office with one lasting shift; no season; mostly quiet with bursts; nothing at all outside working hours.
"""
SEASONAL = ("office", "nightly", "daily", "month-end", "growth", "shift", "idle")
TROUBLES = ("ransomware", "stuck", "slow", "freeze")
CLUSTER = 64 << 10
CHUNK = 256 << 10


@dataclass(frozen=True, slots=True)
class Settings:
    """One set of histories. Pairs are (least, most) of an even spread, drawn for each VM."""

    seed: int = 1
    vms: int = 40
    days: int = 120
    start: str = "2026-01-05"
    classes: tuple[str, ...] = CLASSES
    every_hours: tuple[int, ...] = (1, 1, 6, 24)
    noise: tuple[float, float] = (0.25, 0.55)
    memory: tuple[float, float] = (0.2, 0.5)
    wander: float = 0.01
    swing: tuple[float, float] = (3.0, 12.0)
    growth: tuple[float, float] = (1.5, 4.0)
    shift: tuple[float, float] = (2.5, 5.0)
    month_end: tuple[float, float] = (2.5, 5.0)
    failures: float = 0.01
    outage_share: float = 0.15
    trouble_share: float = 0.0
    attack: tuple[float, float] = (4.0, 20.0)
    newcomers: float = 0.05
    leavers: float = 0.05
    paced: float = 0.0
    """The share of VMs whose runs take `pace` times as long from some hour on; for one in three as much shorter."""
    pace: tuple[float, float] = (1.15, 2.0)


TUNING = Settings()
HOLDOUT = replace(
    TUNING,
    seed=8101,
    start="2026-02-11",
    noise=(0.2, 0.7),
    memory=(0.0, 0.6),
    wander=0.015,
    swing=(2.0, 20.0),
    growth=(1.2, 6.0),
    shift=(2.0, 8.0),
    month_end=(2.0, 7.0),
    failures=0.02,
    outage_share=0.25,
    attack=(3.0, 30.0),
)

FRESH = replace(HOLDOUT, seed=9203)
"""As `HOLDOUT`, which had been looked at before: of a seed that was used once, after everything was settled."""


@dataclass(frozen=True, slots=True)
class Sample:
    """`frame` is a history (docs/analysis.md), `truth` a row per disk, `hourly` the bytes that really changed: a row
    per row of `truth`, a column per hour from `start`.
    """

    frame: pd.DataFrame
    truth: pd.DataFrame
    hourly: Floats
    start: pd.Timestamp


def generate(settings: Settings = TUNING) -> Sample:
    """Histories of `settings.vms` VMs, one disk each and a second one for every fifth."""
    start = pd.Timestamp(settings.start, tz="UTC")
    hours = settings.days * 24
    truths, rows, blocks = [], [], []
    for number in range(settings.vms):
        random = np.random.default_rng((settings.seed, number))
        vm = _draw_vm(number, settings, random)
        runs = _run_times(vm, settings, random)
        for disk in ("vda", "vdb")[: 2 if number % 5 == 4 else 1]:
            hourly = _hourly_change(vm, settings, start, random) * (1.0 if disk == "vda" else 0.3)
            truths.append({**vm, "disk": disk})
            rows.append(hourly)
            blocks.append(_runs_of_disk(vm, disk, runs, hourly, random))
    truth = pd.DataFrame(truths)
    return Sample(_as_frame(blocks, start, truth), truth, np.array(rows).reshape(-1, hours), start)


def _draw_vm(number: int, settings: Settings, random: np.random.Generator) -> dict[str, Any]:
    """What is true of one VM; times are hours from the start, -1 when there is none."""
    hours = settings.days * 24
    kind = settings.classes[number % len(settings.classes)]
    vm: dict[str, Any] = {
        "vm": f"{kind}-{number:04d}",
        "class": kind,
        "every": int(random.choice(settings.every_hours)),
        "level": float(np.exp(random.uniform(np.log(20e6), np.log(2e9)))),
        "size": int(random.integers(20, 400)) << 30,
        "speed": float(random.uniform(60e6, 300e6)),
        "entropy": float(random.uniform(4.0, 6.5)),
        "dedup": float(random.uniform(0.05, 0.4)),
        "from_hour": 0,
        "to_hour": hours,
        "outage": -1,
        "outage_hours": 0,
        "shift_hour": -1,
        "shift_factor": 1.0,
        "trouble": "",
        "trouble_hour": -1,
        "trouble_hours": 0,
        "attack": 1.0,
        "pace_hour": hours,
        "pace": 1.0,
    }
    if random.random() < settings.newcomers:
        vm["from_hour"] = int(hours * random.uniform(0.3, 0.95))
    elif random.random() < settings.leavers:
        vm["to_hour"] = int(hours * random.uniform(0.5, 0.9))
    if random.random() < settings.outage_share:
        vm["outage"] = int(hours * random.uniform(0.2, 0.8))
        vm["outage_hours"] = int(random.integers(30, 200))
    if kind == "shift":
        vm["shift_hour"] = int(hours * random.uniform(0.3, 0.7))
        up = random.random() < 0.5
        vm["shift_factor"] = float(random.uniform(*settings.shift)) ** (1 if up else -1)
    vm["failures"] = min(settings.failures * float(random.exponential()), 0.2)
    if random.random() < settings.trouble_share:
        vm.update(_draw_trouble(number, hours, settings, random))
    if settings.paced and random.random() < settings.paced:
        vm["pace_hour"] = int(hours * random.uniform(0.3, 0.95))
        vm["pace"] = float(random.uniform(*settings.pace)) ** random.choice((1, 1, -1))
    return vm


def _draw_trouble(number: int, hours: int, settings: Settings, random: np.random.Generator) -> dict[str, Any]:
    kind = TROUBLES[(number // len(settings.classes) + number) % len(TROUBLES)]
    longest = {"ransomware": 48, "stuck": 24 * 7, "slow": 24 * 4, "freeze": 24}[kind]
    return {
        "trouble": kind,
        "trouble_hour": int(hours * random.uniform(0.6, 0.9)),
        "trouble_hours": longest,
        "attack": float(random.uniform(*settings.attack)),
        "from_hour": 0,
        "to_hour": hours,
        "outage": -1,
    }


def _season(kind: str, start: pd.Timestamp, hours: int, swing: float, peak: int) -> Floats:
    """The shape of a class over time, about one at rest."""
    since = np.arange(hours) + start.hour
    hour, weekday = since % 24, (since // 24 + start.weekday()) % 7
    distance = np.minimum((hour - peak) % 24, (peak - hour) % 24)
    wave = np.exp(-((distance / 4.0) ** 2))
    if kind == "nightly":
        return np.asarray(1 + swing * 2 * (hour == (peak + 12) % 24) + swing * 0.3 * wave, dtype=np.float64)
    if kind in ("flat", "bursty"):
        return np.ones(hours)
    if kind == "idle":
        return np.asarray(swing * ((distance <= 4) & (weekday < 5)), dtype=np.float64)
    weekend = (weekday >= 5) if kind != "daily" else np.zeros(hours, bool)
    return np.asarray(1 + swing * wave * np.where(weekend, 0.1, 1.0), dtype=np.float64)


def _hourly_change(vm: dict[str, Any], settings: Settings, start: pd.Timestamp, random: np.random.Generator) -> Floats:
    """Bytes that really change in every hour: season, trend, wander, noise with memory, trouble."""
    hours = settings.days * 24
    kind = vm["class"]
    season = _season(kind, start, hours, random.uniform(*settings.swing), int(random.integers(9, 17)))
    level = np.exp(np.repeat(np.cumsum(random.normal(0, settings.wander, settings.days)), 24))
    if kind == "growth":
        level = level * random.uniform(*settings.growth) ** (np.arange(hours) / hours)
    if kind == "shift":
        level = np.where(np.arange(hours) >= vm["shift_hour"], level * vm["shift_factor"], level)
    if kind == "month-end":
        level = np.where(_month_ends(start, hours), level * random.uniform(*settings.month_end), level)
    noise = _noise(hours, random.uniform(*settings.noise), random.uniform(*settings.memory), random)
    change = vm["level"] / 6 * season * level * noise
    if kind == "bursty":
        change = change * np.where(random.random(hours) < 0.05, 20.0, 0.02)
    begin, end = vm["trouble_hour"], vm["trouble_hour"] + vm["trouble_hours"]
    if vm["trouble"] == "ransomware":
        change[begin:end] = change[begin:end] + vm["attack"] * vm["level"]
    return np.asarray(np.minimum(change, vm["size"] / 4), dtype=np.float64)


def _month_ends(start: pd.Timestamp, hours: int) -> NDArray[np.bool_]:
    days = pd.date_range(start.normalize(), periods=hours // 24 + 2, freq="D")
    return np.repeat(np.asarray(days.is_month_end), 24)[start.hour : start.hour + hours]


def _noise(hours: int, spread: float, memory: float, random: np.random.Generator) -> Floats:
    """Log-normal noise of median one; `memory` is the correlation of one hour with the next."""
    raw = random.normal(0, spread * np.sqrt(1 - memory**2), hours)
    out = np.empty(hours)
    last = 0.0
    for index, value in enumerate(raw.tolist()):
        last = memory * last + value
        out[index] = last
    return np.exp(out)


def _run_times(vm: dict[str, Any], settings: Settings, random: np.random.Generator) -> tuple[Floats, NDArray[np.bool_]]:
    """When runs start (hours from the start, with minutes of jitter), and whether they succeed."""
    times = np.arange(vm["from_hour"], vm["to_hour"], vm["every"], dtype=float)
    times = times + (2.0 if vm["every"] == 24 else 0.0) + random.uniform(0, 0.1, len(times))
    if vm["outage"] >= 0:
        times = times[(times < vm["outage"]) | (times >= vm["outage"] + vm["outage_hours"])]
    times = times[times < settings.days * 24]
    ok = random.random(len(times)) >= vm["failures"]
    ok[:1] = True
    return times, ok


def _runs_of_disk(
    vm: dict[str, Any],
    disk: str,
    runs: tuple[Floats, NDArray[np.bool_]],
    hourly: Floats,
    random: np.random.Generator,
) -> dict[str, Any]:
    """Columns of the history of one disk."""
    times, ok = runs
    count = len(times)
    total = np.concatenate(([0.0], np.cumsum(hourly)))
    upto = np.interp(times, np.arange(len(total)), total)
    good = np.where(ok, np.arange(count), -1)
    before = np.maximum.accumulate(np.concatenate(([-1], good)))[:-1] if count else good
    changed = np.where(before >= 0, upto - upto[np.maximum(before, 0)], 0.0)
    full = before < 0
    hit = (times >= vm["trouble_hour"]) & (times < vm["trouble_hour"] + vm["trouble_hours"]) & (vm["trouble"] != "")
    attacked = hit & (vm["trouble"] == "ransomware")
    changed = np.where(hit & (vm["trouble"] == "stuck"), 0.0, changed)
    changed = np.where(full, vm["size"] * 0.5, np.minimum(np.ceil(changed / CLUSTER) * CLUSTER, vm["size"]))
    own = np.where(attacked, vm["level"] * vm["every"] / np.maximum(changed, 1), 1.0).clip(0, 1)
    entropy = np.clip(random.normal(vm["entropy"], 0.25, count), 0.5, 7.99)
    entropy = np.where(attacked, 7.95 - 0.3 * own * random.random(count), entropy)
    zero = np.floor(changed * random.uniform(0.01, 0.08, count) / CLUSTER) * CLUSTER
    dedup = np.clip(vm["dedup"] * np.exp(random.normal(0, 0.25, count)), 0, 0.9)
    dedup = np.where(attacked, dedup * 0.05 * own, dedup)
    new = np.floor((changed - zero) * (1 - dedup) / CLUSTER) * CLUSTER
    ratio = np.maximum(np.exp(random.normal(0, 0.06, count)) * (8.3 - entropy) / 2 + 0.85, 1.0)
    stored = np.ceil(new / ratio)
    slow = np.where(hit & (vm["trouble"] == "slow"), 4.0, 1.0)
    pace = np.where(times >= vm["pace_hour"], vm["pace"], 1.0)
    seconds = (6 + changed / vm["speed"]) * np.exp(random.normal(0, 0.12, count)) * slow * pace
    frozen = np.exp(random.normal(np.log(0.15), 0.3, count))
    frozen = np.where(hit & (vm["trouble"] == "freeze"), frozen * 60, frozen)
    stuck = changed == 0
    return {
        "vm": vm["vm"],
        "disk": disk,
        "hours": times,
        "ok": ok,
        "kind": np.where(full, "full", "incremental"),
        "bytes_size": np.full(count, vm["size"], dtype=np.int64),
        "bytes_read": np.where(ok, changed, 0).astype(np.int64),
        "bytes_changed": np.where(ok, changed, 0).astype(np.int64),
        "bytes_zero": np.where(ok, zero, 0).astype(np.int64),
        "bytes_new": np.where(ok, new, 0).astype(np.int64),
        "bytes_stored": np.where(ok, stored, 0).astype(np.int64),
        "ratio": np.where(ok & ~stuck & (stored > 0), new / np.maximum(stored, 1), np.nan),
        "seconds": seconds,
        "seconds_held": seconds * 0.6,
        "seconds_frozen": frozen,
        "entropy": np.where(ok & ~stuck, entropy, np.nan),
        "dedup_hits": np.where(ok, (changed - zero - new) / CHUNK, 0).astype(np.int64),
    }


def _as_frame(blocks: list[dict[str, Any]], start: pd.Timestamp, truth: pd.DataFrame) -> pd.DataFrame:
    counts = [len(block["hours"]) for block in blocks]
    joined = {
        name: np.concatenate([block[name] for block in blocks]) for name in blocks[0] if name not in ("vm", "disk")
    }
    hours = joined.pop("hours")
    vms = _coded(truth["vm"].tolist(), counts)
    frame = pd.DataFrame(joined)
    frame.insert(0, "vm", vms)
    frame.insert(1, "disk", _coded(truth["disk"].tolist(), counts))
    started = start + pd.to_timedelta(np.round(hours * 3600), unit="s")
    frame.insert(2, "started", pd.DatetimeIndex(started).as_unit("ns"))
    frame["kind"] = frame["kind"].astype("category")
    frame["tier"] = _coded(["hot"], [len(frame)])
    codes = np.asarray(vms.codes, dtype=np.int64) * 10**8 + np.round(hours * 1000).astype(np.int64)
    frame.insert(0, "run_id", codes)
    frame["segments_agree"] = True
    return frame[list(HISTORY)]


def _coded(names: list[str], counts: list[int]) -> Any:
    """A categorical column: each name as often as its count says."""
    kinds: Any = sorted(set(names))
    codes: Any = np.repeat([kinds.index(name) for name in names], counts)
    return pd.Categorical.from_codes(codes, kinds)
