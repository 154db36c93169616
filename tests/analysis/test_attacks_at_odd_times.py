"""Encryption in runs that lie unevenly: after an outage, several an hour, by hand; and where nobody can look."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vmcellar.analysis.anomalies import find
from vmcellar.analysis.history import HISTORY, conform
from vmcellar.analysis.unjudged import unjudged


def runs_at(hours: list[float], attacked: float | None = None, kind: str = "incremental") -> pd.DataFrame:
    """Runs of a VM at these hours, which find much alike; the one at `attacked` finds eight times that, encrypted."""
    random, count, at = np.random.default_rng(1), len(hours), np.array(hours)
    frame = pd.DataFrame({name: np.zeros(count) for name in HISTORY})
    frame["vm"], frame["disk"], frame["tier"], frame["ok"], frame["kind"] = "web", "vda", "hot", True, kind
    frame["run_id"] = [f"web-{number}" for number in range(count)]
    frame["started"] = pd.Timestamp("2026-01-05", tz="UTC") + pd.to_timedelta(at * 3600, unit="s")
    bad = at == (np.nan if attacked is None else attacked)
    changed = 2e8 * np.diff(at, prepend=at[0] - 1) * random.lognormal(0, 0.3, count) * np.where(bad, 8, 1)
    new = changed * np.where(bad, 1.0, random.normal(0.75, 0.02, count))
    ratio = np.where(bad, 1.0, random.normal(2.2, 0.05, count))
    frame["bytes_size"], frame["bytes_changed"], frame["bytes_read"] = 100 << 30, changed, changed
    frame["bytes_new"], frame["bytes_stored"], frame["ratio"] = new, new / ratio, ratio
    frame["entropy"] = np.where(bad, 7.98, random.normal(5.2, 0.1, count))
    frame["seconds"], frame["seconds_frozen"] = 8 + changed / 1e8, 0.1
    return conform(frame.astype({name: dtype for name, dtype in HISTORY.items() if dtype == "int64"}))


def every(hours: float, days: int = 60) -> list[float]:
    return [float(hour) for hour in np.arange(0, days * 24, hours)]


def kinds(frame: pd.DataFrame) -> set[str]:
    return {one.kind for one in find(frame)}


HOURLY, QUARTERLY, NIGHTLY = every(1), every(0.25), [24.0 * day + 22 for day in range(80)]


@pytest.mark.parametrize(
    ("hours", "attacked"),
    [
        pytest.param([*HOURLY[:-10], *HOURLY[-5:]], HOURLY[-5], id="the first after five hours without a backup"),
        pytest.param([*NIGHTLY[:-8], *NIGHTLY[-3:]], NIGHTLY[-3], id="the first after five nights without one"),
        *(pytest.param(QUARTERLY, QUARTERLY[-back], id=f"{back} quarters of an hour ago") for back in range(8, 12)),
        pytest.param(sorted([*NIGHTLY, NIGHTLY[-3] - 2]), NIGHTLY[-3] - 2, id="by hand two hours before the nightly"),
    ],
)
def test_an_attack_is_found_in_whichever_run_it_falls(hours: list[float], attacked: float) -> None:
    assert "ransomware" in kinds(runs_at(hours, attacked))
    assert "ransomware" not in kinds(runs_at(hours))


def test_what_was_seen_after_an_outage_is_told_in_figures() -> None:
    (one,) = find(runs_at([*HOURLY[:-10], *HOURLY[-5:]], HOURLY[-5]))
    assert "nan" not in one.text


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (runs_at(every(48), every(48)[-1]), "backed up every 48 hours"),
        (runs_at(every(24, days=9)), "8.0 days of history"),
        (runs_at(every(24), kind="full"), "never backed up incrementally"),
        (runs_at(every(24)).assign(ok=False), "no good run"),
    ],
)
def test_disks_of_which_nothing_can_be_told_are_named(frame: pd.DataFrame, why: str) -> None:
    assert find(frame) == []
    (one,) = unjudged(frame)
    assert (one.vm, why in one.reason) == ("web", True)


def test_a_disk_that_is_judged_is_not_among_them_until_its_backups_stop() -> None:
    frame = runs_at(HOURLY)
    assert unjudged(frame) == []
    (one,) = unjudged(frame, frame["started"].max().timestamp() + 86400)
    assert "no good run for 24 hours" in one.reason
