"""The history of 240 real backups (bench/histories.py) through the analysis."""

from __future__ import annotations

import pandas as pd
import pytest

from bench.histories import KEPT, STEP_HOURS, TROUBLE_RUNS
from vmcellar.analysis.anomalies import find
from vmcellar.analysis.forecast import forecast_change
from vmcellar.analysis.history import read_history
from vmcellar.analysis.quality import quarantine


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    good, bad = quarantine(read_history(KEPT))
    assert bad.empty
    assert good["run_id"].nunique() == 240
    return good


def test_encryption_and_a_silent_disk_are_found_and_nothing_else(frame: pd.DataFrame) -> None:
    last = frame["started"].max()
    began = last - pd.Timedelta(hours=STEP_HOURS * (TROUBLE_RUNS - 0.5))
    found = find(frame, last.timestamp(), days=38)
    assert {(one.disk, one.kind) for one in found} == {("vda", "ransomware"), ("vda", "change"), ("vdc", "stuck")}
    (ransomware,) = [one for one in found if one.kind == "ransomware"]
    assert 0 <= ransomware.at - began.timestamp() < STEP_HOURS * 3600, "by the first backup that shows it"
    assert ransomware.began < began.timestamp()


def test_every_disk_has_a_forecast_that_beats_last_week(frame: pd.DataFrame) -> None:
    calm = frame[frame["started"] < frame["started"].max() - pd.Timedelta(days=3)]
    outlook = forecast_change(calm)
    assert outlook.refusals == ()
    assert {one.disk for one in outlook.forecasts if one.mase < 1} == {"vda", "vdb", "vdc"}
