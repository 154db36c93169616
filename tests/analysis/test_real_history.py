"""The histories of real backups of guests (bench/histories.py) through the analysis."""

from __future__ import annotations

import pandas as pd
import pytest

from bench.histories import GUESTS, HOUR, KEPT, of_guest
from vmcellar.analysis.anomalies import find
from vmcellar.analysis.forecast import forecast_change
from vmcellar.analysis.quality import quarantine

AS_MUCH_BEFORE = {"build"}
"""Guests whose encrypted disk had days with as much change: encryption is no anomaly of `change` there."""


@pytest.fixture(scope="module")
def frames() -> dict[str, pd.DataFrame]:
    found = {}
    for name, guest in GUESTS.items():
        found[name], bad = quarantine(of_guest(KEPT, name))
        assert bad.empty
        assert found[name]["run_id"].nunique() == guest.runs
    return found


@pytest.mark.parametrize("name", GUESTS)
def test_encryption_and_a_silent_disk_are_found_and_nothing_else(frames: dict[str, pd.DataFrame], name: str) -> None:
    frame, guest = frames[name], GUESTS[name]
    first, last = frame["started"].min(), frame["started"].max()
    began = guest.calm_until(last.timestamp())
    found = find(frame, last.timestamp(), days=(last - first).days - 21)
    expected = {(guest.encrypted, "ransomware"), (guest.silent, "stuck")}
    expected |= set() if name in AS_MUCH_BEFORE else {(guest.encrypted, "change")}
    assert {(one.disk, one.kind) for one in found} == expected
    (ransomware,) = [one for one in found if one.kind == "ransomware"]
    assert 0 <= ransomware.at - began < guest.step * HOUR, "by the first backup that shows it"
    assert ransomware.began < began


@pytest.mark.parametrize("name", GUESTS)
def test_every_disk_has_a_forecast_that_beats_last_week(frames: dict[str, pd.DataFrame], name: str) -> None:
    frame, guest = frames[name], GUESTS[name]
    outlook = forecast_change(frame[frame["started"].map(pd.Timestamp.timestamp) < guest.calm_until(_last(frame))])
    assert outlook.refusals == ()
    assert {one.disk for one in outlook.forecasts if one.mase < 1} == guest.disks.keys()


def _last(frame: pd.DataFrame) -> float:
    return float(frame["started"].max().timestamp())
