"""The whole look at a history: on a repository without a point, after some backups, and on a long history."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.backup.world import make_engine
from vmcellar.analysis import report
from vmcellar.analysis.sample import TUNING, generate
from vmcellar.backup import pipeline
from vmcellar.backup.model import BackupRequest


def test_a_repository_without_a_point(tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    quality, good = report.check(engine.catalog, engine.repository)
    assert (quality.runs, quality.rows, quality.bad, quality.ok) == (0, 0, 0, True)
    found = report.analyse(engine.catalog, engine.repository, engine.config, good)
    assert "days of history on hot" in found.sections["Capacity"]
    assert found.sections["Age of the newest point"] == "Nothing."
    assert all(image.startswith(b"\x89PNG") for image in found.images.values())


def test_after_some_backups(tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    for _ in range(3):
        pipeline.run(engine, BackupRequest("web"))
    quality, good = report.check(engine.catalog, engine.repository)
    assert (quality.runs, quality.rows, quality.bad) == (3, 3, 0)
    found = report.analyse(engine.catalog, engine.repository, engine.config, good)
    assert "| web |" in found.sections["VMs"]
    assert "## Capacity" in found.markdown
    assert found.images["heat-map"].startswith(b"\x89PNG")
    assert engine.catalog.counts()["tier_use"] == 1


def test_a_long_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(tmp_path)
    frame = generate(replace(TUNING, seed=2, vms=4, days=60, trouble_share=1.0)).frame
    frame.loc[frame.index[5], "bytes_new"] = -1
    now = frame["started"].max() + pd.Timedelta(hours=1)
    monkeypatch.setattr(engine.repository, "clock", now.timestamp)
    monkeypatch.setattr("vmcellar.analysis.report.read.recent", lambda *_: frame)
    quality, good = report.check(engine.catalog, engine.repository)
    assert (quality.bad, quality.ok) == (1, False)
    assert "bytes_new is negative" in quality.markdown
    found = report.analyse(engine.catalog, engine.repository, engine.config, good)
    assert {"tier-hot", "change-calendar", "newest-points", "time-to-restore"} <= found.images.keys()
    assert "a day" in found.sections["Capacity"]
