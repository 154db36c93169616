"""Every plot draws what there is, and says so when there is nothing; what they look like is for people to judge."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from vmcellar.analysis import plots
from vmcellar.analysis.anomalies import Anomaly
from vmcellar.analysis.capacity import TierUse, capacity
from vmcellar.analysis.figures import in_bytes, in_time, png
from vmcellar.analysis.fill import fill_of
from vmcellar.analysis.forecast import forecast_change
from vmcellar.analysis.grid import seconds_of
from vmcellar.analysis.heat import HeatMap
from vmcellar.analysis.history import empty_history
from vmcellar.analysis.sample import TUNING, generate
from vmcellar.config.prices import Prices
from vmcellar.errors import PermanentError

FRAME = generate(replace(TUNING, seed=2, vms=4, days=60)).frame
NOW = float(seconds_of(FRAME["started"]).max())
AT = pd.Timestamp(NOW, unit="s", tz="UTC")
VM = str(FRAME["vm"].iloc[0])


def drawn(figure: Figure) -> str:
    """Its words, after it was drawn to a PNG of some substance."""
    data = png(figure)
    assert data.startswith(b"\x89PNG")
    assert len(data) > 5000
    texts = [*figure.texts, *(text for axis in figure.axes for text in axis.texts)]
    return " ".join(text.get_text().strip() for text in texts)


def test_tier_fill_names_the_day() -> None:
    fill = fill_of(FRAME, "hot", 1 << 40, NOW)
    assert "full on" in drawn(plots.tier_fill(FRAME, fill, float(fill.used[30])))
    assert "not full within a year" in drawn(plots.tier_fill(FRAME, fill, None))
    assert "No forecast" in drawn(plots.tier_fill(FRAME[:0], fill_of(FRAME[:0], "hot", 1.0, NOW), None))


def test_calendar_and_week() -> None:
    assert "Change calendar" in drawn(plots.change_calendar(FRAME))
    assert "No incremental backup" in drawn(plots.change_calendar(empty_history()))
    assert VM in drawn(plots.week_profile(FRAME, VM))
    with pytest.raises(PermanentError, match="nobody"):
        plots.week_profile(FRAME, "nobody")


def test_age_of_the_newest_point() -> None:
    assert "dashed" in drawn(plots.rpo_timeline(FRAME, {VM: 60.0}, AT, [VM]))
    assert "no point in this time" in drawn(plots.rpo_timeline(FRAME, {}, AT, [VM, "gone"]))
    assert "No good run" in drawn(plots.rpo_timeline(FRAME, {}, AT, ["nobody"]))


def test_time_to_restore() -> None:
    table = pd.DataFrame(
        {"vm": ["a", "b"], "bytes_size": 1, "drills": [1, 0], "measured": [9.0, np.nan], "predicted": [8.0, 7.0]}
    )
    assert "1 of 2 VMs were drilled" in drawn(plots.rto(table, {"a": 10.0}))
    assert "No drill is known" in drawn(plots.rto(table.assign(predicted=np.nan), {}))


def test_forecast_and_incident() -> None:
    made = forecast_change(FRAME, NOW).forecasts[0]
    assert f"{made.vm} {made.disk}" in drawn(plots.change_forecast(FRAME, made))
    strange = Anomaly(VM, "vda", "ransomware", NOW - 9e4, NOW - 4e4, 2.0, "", NOW - 9.5e4)
    assert "ransomware from" in drawn(plots.incident(FRAME, VM, "vda", [strange]))
    assert "nothing strange" in drawn(plots.incident(FRAME, VM, "vda", []))


def test_heat() -> None:
    times = tuple(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day) for day in range(3))
    changed = np.array([[0.0, 1.0], [0.5, 0.0], [0.0, 0.0]])
    found = HeatMap("web", "vda", 1 << 30, 1 << 29, ("a", "b", "c"), times, changed)
    assert "web vda: where it changes part of each 512 MiB" in drawn(plots.heat(found))
    torn = replace(
        found, changed=np.array([[0.0, 1.0], [np.nan, np.nan], [np.nan, np.nan]]), damaged={"b": "cut short"}
    )
    assert "grey: a map is damaged" in drawn(plots.heat(torn))


def test_where_nothing_ever_changed() -> None:
    """As of VMs that sleep: the page of a host with only such ones has to come all the same."""
    asleep = FRAME.assign(bytes_changed=0, bytes_new=0, bytes_stored=0, bytes_read=0)
    assert "Change calendar" in drawn(plots.change_calendar(asleep))
    assert VM in drawn(plots.week_profile(asleep, VM))
    assert "Tier hot" in drawn(plots.tier_fill(asleep, fill_of(asleep, "hot", 0.0, NOW), None))
    assert "What was stored" in drawn(plots.largest(asleep))
    assert "nothing strange" in drawn(plots.incident(asleep, VM, "vda", []))
    for made in forecast_change(asleep, NOW).forecasts[:1]:
        drawn(plots.change_forecast(asleep, made))


def test_cost_of_tiers() -> None:
    tiers = capacity(FRAME, [TierUse("hot", 1 << 40, None)], NOW, prices={"hot": Prices(gb_month=0.1)})
    assert "80 % intervals" in drawn(plots.tier_costs(tiers))
    assert "No tier has a price" in drawn(plots.tier_costs([replace(tiers[0], costs=())]))


def test_long_names_push_no_words_off_the_sheet() -> None:
    name = {vm: f"{vm}-of-the-production-cluster-in-the-second-hall" for vm in FRAME["vm"].unique()}
    frame = FRAME.assign(vm=FRAME["vm"].astype("object").map(name).astype("category"))
    vms = [str(vm) for vm in frame["vm"].unique()]
    table = pd.DataFrame({"vm": vms, "bytes_size": 1, "drills": 1, "measured": 9.0, "predicted": 8.0})
    figures = (
        plots.change_calendar(frame),
        plots.rpo_timeline(frame, {}, AT, vms),
        plots.rto(table, dict.fromkeys(vms, 10.0)),
        plots.largest(frame),
    )
    for figure in figures:
        drawn(figure)
        assert len(figure.texts) == 2
        for text in figure.texts:
            assert text.get_window_extent().x1 <= figure.bbox.x1, text.get_text()


def test_a_legend_lies_on_no_bar() -> None:
    one = pd.DataFrame({"vm": ["a"], "bytes_size": 1, "drills": 1, "measured": 9.0, "predicted": 8.0})
    figure = plots.rto(one, {"a": 10.0})
    drawn(figure)
    (legend,) = figure.legends
    assert not legend.get_window_extent().overlaps(figure.axes[0].get_window_extent())


def test_use_begins_with_the_first_run() -> None:
    short = FRAME[FRAME["started"] > AT - pd.Timedelta(days=40)]
    (axis,) = plots.tier_fill(short, fill_of(short, "hot", 1 << 40, NOW), None).axes
    times: Any = axis.lines[0].get_xdata()
    assert abs(times[0] - short["started"].min()) <= timedelta(days=2)


def test_units() -> None:
    assert [in_bytes(size)[1] for size in (0, 999, 1000, 1 << 20, 1 << 60)] == ["B", "B", "KiB", "MiB", "PiB"]
    assert [in_time(seconds)[1] for seconds in (1, 200, 20000, 400000)] == ["seconds", "minutes", "hours", "days"]


def test_a_calendar_of_a_few_days_names_each_of_them() -> None:
    sample = generate(replace(TUNING, seed=4, vms=2, days=30, newcomers=0.0, leavers=0.0, every_hours=(6,))).frame
    few = sample[sample["started"] >= sample["started"].max() - pd.Timedelta(days=2.5)]
    first, last = few["started"].min(), few["started"].max()
    days = [f"{day:%d %b}" for day in pd.date_range(first.floor("D"), last, freq="D")]
    short, long = (plots.change_calendar(frame) for frame in (few, sample))
    assert [label.get_text() for label in short.axes[0].get_xticklabels()] == days
    assert len(long.axes[0].get_xticklabels()) in (4, 5), "weeks"
