"""Histories of real backups: real guests that are backed up many times, by a clock that is moved.

    ./run bench histories --make FILE --guest office|batch|idle|site|build [--minutes 6.5]
    ./run bench histories [FILE]

`--make` starts a paused guest, writes to its disks as `GUESTS` says, and backs it up every few hours of a clock that
stands still but for the runs: each run is a whole one (checkpoint, NBD, dirty bitmap, packs, commit, verification),
takes as long as it takes, and notes its own rows. In its last runs one disk is encrypted, and another one falls silent.
What comes of it is written as Parquet: instead of the same guest's rows, beside those of others that FILE holds.

Without `--make` the kept histories (`bench/histories.parquet`), or FILE, go through the whole analysis, guest by guest.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from lab.mixeddata import Stream
    from vmcellar.engine import Engine

KEPT = Path(__file__).with_name("histories.parquet")
MIB = 1 << 20
HOUR, DAY = 3600.0, 86400.0
BEGIN = 1_780_272_000.0  # Monday, 2026-06-01, 00:00 UTC
DISK_MIB = 384
_real_time = time.time


@dataclass(frozen=True, slots=True)
class Guest:
    """How a guest is backed up: so many runs, every `step` hours, of disks by their kinds; in its last `trouble` runs
    the disk `encrypted` is written all over with noise, and `silent` not at all.
    """

    runs: int
    step: int
    disks: dict[str, str]
    encrypted: str
    silent: str
    trouble: int
    seed: int

    def calm_until(self, last: float) -> float:
        """The moment when trouble began, of a history whose last run began then (seconds since the epoch)."""
        return last - HOUR * self.step * (self.trouble - 0.5)


GUESTS = {
    "office": Guest(240, 6, {"vda": "office", "vdb": "nightly", "vdc": "sleeping"}, "vda", "vdc", 8, 2026),
    "batch": Guest(220, 6, {"vda": "orders", "vdb": "reports"}, "vdb", "vda", 8, 2027),
    "idle": Guest(130, 24, {"vda": "logs", "vdb": "updates"}, "vdb", "vda", 4, 2028),
    "site": Guest(480, 6, {"vda": "visits", "vdb": "mail"}, "vdb", "vda", 8, 2029),
    "build": Guest(360, 6, {"vda": "builds", "vdb": "registry"}, "vda", "vdb", 8, 2030),
}
WANDERS = {"visits": 0.02, "mail": 0.01, "registry": 0.02}
"""By how much a kind's level moves from day to day (standard deviation of logarithms): a random walk of its own."""
DOUBLES = {"mail": 120.0}
"""In how many days a kind's level doubles."""


class Clock:
    """Seconds since the epoch that go on with the real ones, and jump when told to."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def __call__(self) -> float:
        """What `time.time` says from now on."""
        return _real_time() + self._ahead

    def jump_to(self, moment: float) -> None:
        """Go on from there."""
        self._ahead = moment - _real_time()


def _mib_of(kind: str, moment: float, random: np.random.Generator) -> float:
    """What a disk of this kind changes in the time before a moment, up to the run before."""
    hour, weekday = int(moment % DAY // HOUR), int((moment - 1 - BEGIN) // DAY % 7)
    working = weekday < 5 and hour in (12, 18)
    noise = float(np.exp(_noise(kind, random)))
    usual = {
        "office": 12.0 if working else 2.0,
        "nightly": 14.0 if hour == 6 else 1.5,
        "sleeping": 6.0 if working else 0.0,
        "orders": 9.0 if hour in (12, 18) else 3.0,  # every day alike
        "reports": 24.0 if hour == 6 and weekday not in (0, 6) else 0.5,  # of the day before; none of weekends
        "logs": 1.5 if weekday < 5 else 0.7,
        "updates": 20.0 if weekday == 2 else 0.5,
        "visits": {0: 5.0, 6: 1.5}.get(hour, 8.0) * (0.6 if weekday > 4 else 1.0),
        "mail": 5.0 if working else 1.0,
        "builds": 4.0 if working else 0.8,
        "registry": 5.0 if working else 1.0,
    }
    return usual[kind] * noise * _level(kind, moment)


def _noise(kind: str, random: np.random.Generator) -> float:
    """Logarithm of how much more than usual a run finds: of visits with heavy tails, of builds with releases."""
    if kind == "visits":
        return 0.3 * float(random.standard_t(4))
    release = kind == "builds" and random.random() < 0.25
    return float(random.normal(np.log(4) if release else 0.0, 0.3))


def _level(kind: str, moment: float) -> float:
    """Where a kind's level is by then, from one at the begin: the same walk whenever it is asked for."""
    days = (moment - BEGIN) / DAY
    walk = np.random.default_rng(list(kind.encode())).normal(0, WANDERS.get(kind, 0.0), int(days) + 1)
    return float(np.exp(walk.sum()) * 2 ** (days / DOUBLES.get(kind, np.inf)))


def _pieces(mib: float, random: np.random.Generator, content: Stream | None) -> list[tuple[int, bytes]]:
    """Scattered writes of 64 KiB to 1 MiB that come to about `mib`, most of them in the first tenth of the disk; of
    `content`, or (None) of random bytes.
    """
    found, left = [], int(mib * 16)
    while left > 0:
        blocks = min(int(random.integers(1, 17)), left)
        reach = DISK_MIB * 16 // (10 if random.random() < 0.8 else 1) - blocks
        length = blocks << 16
        data = bytes(random.bytes(length)) if content is None else content.take(length)
        found.append((int(random.integers(0, reach)) << 16, data))
        left -= blocks
    return found


def make(file: Path, name: str, minutes: float) -> int:
    """Back a guest up as often as it is to be, or for so many minutes; how many runs it came to."""
    kind = GUESTS[name]
    clock = Clock()
    time.time = clock  # before the engine's modules take it for theirs
    import libvirt  # noqa: PLC0415
    import pandas as pd  # noqa: PLC0415

    from lab import daemons  # noqa: PLC0415
    from lab.disks import DiskSpec  # noqa: PLC0415
    from lab.guest import LabGuest  # noqa: PLC0415
    from lab.mixeddata import Stream, log_text  # noqa: PLC0415
    from lab.monitor import poke_many  # noqa: PLC0415
    from lab.paths import vm_folder  # noqa: PLC0415
    from vmcellar.analysis.exports import read_history  # noqa: PLC0415
    from vmcellar.analysis.history import conform, history  # noqa: PLC0415
    from vmcellar.backup import pipeline  # noqa: PLC0415
    from vmcellar.backup.model import BackupRequest  # noqa: PLC0415

    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    daemons.ensure()
    random = np.random.default_rng(kind.seed)
    content = Stream(log_text(random))
    disks = tuple(DiskSpec(target, DISK_MIB * MIB) for target in kind.disks)
    until, done = time.monotonic() + 60 * minutes, 0
    with vm_folder("histories") as folder, LabGuest(folder, disks) as guest:
        guest.start(paused=True)
        engine = _engine(folder)
        for target in kind.disks:
            poke_many(guest.domain, target, _pieces(24, random, content), folder)
        while done < kind.runs and time.monotonic() < until:
            moment = BEGIN + done * kind.step * HOUR
            trouble = done >= kind.runs - kind.trouble
            for target, use in kind.disks.items():
                mib = _mib_of(use, moment, random)
                encrypting, silent = (trouble and target == each for each in (kind.encrypted, kind.silent))
                pieces = _pieces(40 if encrypting else mib, random, None if encrypting else content)
                if done and pieces and not silent:
                    poke_many(guest.domain, target, pieces, folder)
            clock.jump_to(moment)
            pipeline.run(engine, BackupRequest(guest.name))
            done += 1
        frame = history(engine.catalog)
        engine.repository.close()
    frame["vm"] = name
    if file.exists():
        others = read_history(file)
        frame = pd.concat([others[others["vm"] != name].astype({"vm": "object"}), frame])
    conform(frame).to_parquet(file, index=False)
    print(f"{done} runs, {len(frame)} rows in {file}, in {60 * minutes - (until - time.monotonic()):.0f} s")
    return done


def _engine(folder: Path) -> Engine:
    from vmcellar.config.model import Config  # noqa: PLC0415
    from vmcellar.engine import Engine  # noqa: PLC0415
    from vmcellar.repository.repository import Repository  # noqa: PLC0415
    from vmcellar.sources.libvirt_source import LibvirtSource  # noqa: PLC0415

    (folder / "passphrase").write_text("a passphrase of a bench")
    places = {name: str(folder / name) for name in ("state", "scratch")}
    config = Config.model_validate(
        {
            "tiers": {"hot": str(folder / "repository")},
            "key": {"file": str(folder / "passphrase")},
            "landing": {"dir": str(folder / "landing"), "budget": "256 MiB"},
            **places,
        }
    )
    source = LibvirtSource(config.libvirt.uri, config.scratch, 8 * MIB)
    return Engine(config, Repository.init(config), source)


def of_guest(file: Path, name: str) -> pd.DataFrame:
    """The rows of one guest of a file."""
    from vmcellar.analysis.exports import read_history  # noqa: PLC0415
    from vmcellar.analysis.history import conform  # noqa: PLC0415

    frame = read_history(file)
    return conform(frame[frame["vm"] == name].astype({"vm": "object", "disk": "object"}))


def judge(frame: pd.DataFrame, name: str) -> dict[str, Any]:
    """What the analysis makes of a guest's history: quality, forecasts against what came, anomalies, next runs."""
    import pandas as pd  # noqa: PLC0415

    from bench.analysis_forecast import score_forecasts  # noqa: PLC0415
    from vmcellar.analysis.anomalies import find  # noqa: PLC0415
    from vmcellar.analysis.quality import quarantine  # noqa: PLC0415
    from vmcellar.analysis.sample import Sample  # noqa: PLC0415

    kind = GUESTS[name]
    first, last = frame["started"].min(), frame["started"].max()
    good, bad = quarantine(frame, last.timestamp())
    troubled = pd.Timestamp(kind.calm_until(last.timestamp()), unit="s", tz="UTC")
    calm = good[good["started"] < troubled]
    truth = pd.DataFrame([{"vm": name, "disk": disk, "class": use} for disk, use in kind.disks.items()])
    days, a_day = int((troubled - first).days), 24 // kind.step
    score = score_forecasts(Sample(calm, truth, np.empty((0, 0)), first), tuple(range(28, days - 7, 2)))
    found = find(good, last.timestamp(), days=(last - first).days - 21)
    false = [one for one in found if one.last < troubled.timestamp()]
    true = [one for one in found if one.last >= troubled.timestamp()]
    moments = [first + pd.Timedelta(hours=kind.step * run + 1) for run in range(a_day * 28, a_day * days - 1)]
    return {
        "runs": int(frame["run_id"].nunique()),
        "days": (last - first).days,
        "bad_rows": len(bad),
        "forecasts": len(score.table),
        "mase": {use: round(score.mase(use), 3) for use in kind.disks.values() if (score.table["class"] == use).any()},
        "inside": {level: round(score.coverage(level), 3) for level in (80, 95)},
        "next_runs": len(moments),
        "next_run": _next_runs(calm, moments),
        "false_alarms": [f"{one.disk} {one.kind} {one.text}" for one in false],
        "found_after_runs": {
            f"{one.disk} {one.kind}": round((one.at - troubled.timestamp()) / HOUR / kind.step + 0.5) for one in true
        },
        "seconds_per_run": round(float(frame.drop_duplicates("run_id")["seconds"].median()), 2),
    }


def _next_runs(frame: pd.DataFrame, moments: list[pd.Timestamp]) -> dict[str, dict[int, float]]:
    """Share of runs inside the 80 and the 95 % interval, for what changed, was stored and how long it took."""
    from vmcellar.analysis.forecast import forecast_change  # noqa: PLC0415
    from vmcellar.analysis.next_run import next_runs  # noqa: PLC0415

    hits: dict[str, dict[int, list[bool]]] = {}
    for moment in moments:
        known = frame[frame["started"] <= moment]
        for one in next_runs(known, forecast_change(known, moment.timestamp())):
            later = frame[frame["started"] > moment]
            came = later[later["started"] == later["started"].min()]
            values = (came["bytes_changed"].sum(), came["bytes_stored"].sum(), came["seconds"].iloc[0])
            for name, value in zip(("changed", "stored", "seconds"), values, strict=True):
                said = getattr(one, name)
                for level in (80, 95):
                    inside = bool(said.low[level] <= value <= said.high[level])
                    hits.setdefault(name, {}).setdefault(level, []).append(inside)
    return {
        name: {level: round(float(np.mean(each)), 3) for level, each in levels.items()} for name, levels in hits.items()
    }


def main() -> int:
    """Make a history, or judge those that there are."""
    parser = argparse.ArgumentParser(description="real histories by a clock that is moved")
    parser.add_argument("file", nargs="?", type=Path, default=KEPT)
    parser.add_argument("--make", type=Path)
    parser.add_argument("--guest", choices=GUESTS, default="office")
    parser.add_argument("--minutes", type=float, default=6.5)
    args = parser.parse_args()
    if args.make is not None:
        return int(make(args.make, args.guest, args.minutes) != GUESTS[args.guest].runs)
    frames = {name: of_guest(args.file, name) for name in GUESTS}
    print(json.dumps({name: judge(frame, name) for name, frame in frames.items() if len(frame)}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
