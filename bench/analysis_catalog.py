"""A catalog of 1,000 VMs with a year of hourly runs, and what the flows do with it: `./run bench analysis --catalog`.

Rows lie in the file in the order in which backups would have written them, not by VM.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from tasks import analysis as tasks
from vmcellar.analysis.history import WEEKS
from vmcellar.analysis.sample import TUNING, generate
from vmcellar.catalog.agreement import judge_segments
from vmcellar.config import load_config
from vmcellar.engine import open_engine
from vmcellar.repository.repository import Repository

VMS_AT_ONCE = 100
ROWS_AT_ONCE = 200_000
SETTINGS = """
tiers: {hot: repo}
key: {file: pass}
state: state
backups: [{name: all, schedule: "0 * * * *", rpo: 4h}]
"""
FIGURES = ("bytes_size", "bytes_read", "bytes_zero", "bytes_changed", "bytes_new", "bytes_stored", "dedup_hits")
RUN = """
INSERT INTO runs (id, repository, vm, started, finished, outcome, kind, held_seconds, freeze_seconds, job, reason,
  error, consistency, warnings, uncovered, recorded_by)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'all', '', '', 'crash', '[]', '[]', 'run')
"""
DISK = """
INSERT INTO run_disks (run_id, target, size, bytes_read, bytes_zero, bytes_changed, bytes_new, bytes_stored,
  chunks_known, entropy, tier, full_reason, bytes_known, segments)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'hot', '', 0, 1)
"""
SEGMENTS = """
INSERT INTO segments (run_id, target, number, bytes_read, bytes_zero, bytes_changed, bytes_known, bytes_new,
  bytes_stored, chunks_known, export_seconds, compress_seconds, place_seconds, verify_seconds, entropy, tier, retries)
SELECT run_id, target, 0, bytes_read, bytes_zero, bytes_changed, bytes_known, bytes_new, bytes_stored, chunks_known,
  1.0, 1.0, 1.0, 1.0, entropy, tier, 0 FROM run_disks
"""
POINTS = """
INSERT INTO points (id, repository, vm, run_id, time, kind, consistency, verified, disks, bytes_size, bytes_stored,
  gone)
SELECT substr(hex(randomblob(16)), 1, 32), repository, vm, id, started, kind, 'crash', 1, 1, size, bytes_stored,
  started + 30 * 86400 FROM runs JOIN run_disks ON run_id = id WHERE outcome = 'done' ORDER BY started
"""


def write(folder: Path, vms: int, days: int) -> None:
    """A repository without points, and a catalog that knows of so many VMs and days, up to ten minutes ago."""
    begun = time.monotonic()
    (folder / "pass").write_text("correct horse\n")
    config = folder / "vmcellar.yaml"
    config.write_text(SETTINGS)
    Repository.init(load_config(config)).close()
    engine = open_engine(config)
    repository = engine.catalog.repository
    engine.repository.close()
    frame = _history(vms, days)
    with sqlite3.connect(folder / "state" / "catalog.sqlite") as database:
        database.execute("PRAGMA synchronous = OFF")
        for begin in range(0, len(frame), ROWS_AT_ONCE):
            _insert(database, repository, frame.iloc[begin : begin + ROWS_AT_ONCE])
        database.execute(SEGMENTS)
        database.execute(POINTS)
    size = (folder / "state" / "catalog.sqlite").stat().st_size / 2**30
    print(f"{len(frame):,} runs of {vms} VMs written in {time.monotonic() - begun:.0f} s, {size:.1f} GiB", flush=True)


def _history(vms: int, days: int) -> pd.DataFrame:
    parts = []
    for number in range(0, vms, VMS_AT_ONCE):
        settings = replace(TUNING, seed=number, vms=min(VMS_AT_ONCE, vms - number), days=days, every_hours=(1,))
        frame = generate(replace(settings, newcomers=0.0, leavers=0.0)).frame
        frame = frame[frame["disk"] == "vda"]
        vm = ("set" + str(number) + "-" + frame["vm"].astype(str)).astype("category")
        parts.append(frame.assign(vm=vm, run_id=str(number) + "-" + frame["run_id"].astype(str)))
    whole = pd.concat(parts, ignore_index=True).sort_values("started", ignore_index=True)
    whole["started"] += pd.Timestamp.now("UTC") - whole["started"].max() - pd.Timedelta(minutes=10)
    return whole


def _insert(database: sqlite3.Connection, repository: str, rows: pd.DataFrame) -> None:
    began = rows["started"].astype("int64") / 1e9
    ok, kind = rows["ok"], rows["kind"].astype("object")
    held = (_known(rows[name]) for name in ("seconds_held", "seconds_frozen"))
    outcome = ok.map({True: "done", False: "failed"})
    ended = _known(began + rows["seconds"])
    names, vm = rows["run_id"], rows["vm"].astype("object")
    database.executemany(
        RUN, zip(names, [repository] * len(rows), vm, began, ended, outcome, kind.where(ok, ""), *held, strict=True)
    )
    figures = (rows[name].tolist() for name in FIGURES)
    disk = rows["disk"].astype("object")
    database.executemany(DISK, zip(names, disk, *figures, _known(rows["entropy"]), strict=True))


def _known(values: pd.Series) -> list[float | None]:
    return [None if pd.isna(value) else float(value) for value in values]


def analyse(folder: Path, step: Callable[[str, Callable[[], Any]], Any]) -> None:
    """What the flows analyse-history and adapt-schedules do, task by task."""
    config = str(folder / "vmcellar.yaml")
    step("first look at all segments", lambda: _judge(config))
    quality, good = step("check history", lambda: tasks.check_history.fn(config))
    rows = step("act on anomalies", lambda: tasks.act_on_anomalies.fn(config, good))
    found = step("analyse history", lambda: tasks.analyse_history.fn(config, good))
    advice, _ = step("advise schedules", lambda: tasks.advise_schedules.fn(config, good, 1.05, True))
    print(
        f"{quality.rows:,} rows of the last {WEEKS} weeks, {quality.bad} bad, {len(rows)} anomalies with consequences, "
        f"{len(found.images)} plots, {len(advice.changes)} schedules"
    )


def _judge(config: str) -> int:
    engine = open_engine(Path(config))
    return judge_segments(engine.catalog, engine.repository.clock())
