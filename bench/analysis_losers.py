"""Whether forecasts lose against the baseline by more than noise: the same series over many weeks, none of them twice.

A week of a daily backup is seven values, so any forecast of it is worse than last week's values now and then. How often
is told by `truth`: a forecast that knows each hour's season, level and growth, and what comes, but for the noise (of
bursts, the median step). And a series is called a loser when its errors over all weeks are larger than the baseline's
by more than these differ from week to week: the test of Diebold and Mariano (1995) in the form of Harvey, Leybourne and
Newbold (1997), one-sided, neighbouring weeks dependent, at 5 % over all series together by Holm's rule.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.special import stdtr

from vmcellar.analysis.forecast import Forecast, forecast_change
from vmcellar.analysis.grid import HOUR, WEEK, Series, series_of, spread
from vmcellar.analysis.sample import Sample, Settings, generate

DAY = 86400.0
LEAST_WEEKS = 10
CHANCE = 0.05
Floats = np.typing.NDArray[np.float64]


def weeks_of(settings: Settings, cuts: range) -> pd.DataFrame:
    """A row per disk and cut (days from the start, a week apart): class, step, and the absolute errors over the next
    week of the forecast (`model`), of the seasonal naive one (`naive`) and of `truth`.
    """
    sample = generate(settings)
    calm = generate(replace(settings, noise=(0.0, 0.0)))  # of the same draws but for the noise
    disks = [(str(one.vm), str(one.disk)) for one in sample.truth.itertuples()]
    kinds = dict(zip(disks, sample.truth["class"], strict=True))
    sizes = dict(zip(disks, sample.truth["size"], strict=True))
    came, quiet = (
        dict(zip(disks, (np.concatenate(([0.0], np.cumsum(each))) for each in one.hourly), strict=True))
        for one in (sample, calm)
    )
    later = {(one.vm, one.disk): one for one in series_of(sample.frame)}
    rows: list[dict[str, object]] = []
    for cut in cuts:
        for one in forecast_change(sample.frame, sample.start.timestamp() + cut * DAY).forecasts:
            disk = one.vm, one.disk
            truth = _truth(kinds[disk], came[disk], quiet[disk], one, sample)
            row = _row(one, later[disk], np.minimum(truth, sizes[disk]))  # no run finds more changed than there is
            rows += [{"vm": one.vm, "disk": one.disk, "class": kinds[disk], "step": one.step, "cut": cut, **row}]
    found = pd.DataFrame(rows)
    return found[found["naive"] > 0]


def _truth(kind: str, came: Floats, calm: Floats, one: Forecast, sample: Sample) -> Floats:
    """By step of the week that is forecast, from a disk's sums by hour with and without noise; of bursts, which nobody
    knows, the median step. Noise has the median of all days.
    """
    edges = one.starts[0] + np.arange(WEEK // one.step + 1) * one.step * HOUR - sample.start.timestamp()
    if kind == "bursty":
        return np.full(len(edges) - 1, float(np.median(np.diff(came[:: one.step]))))
    days, expected = (np.diff(each[::24]) for each in (came, calm))
    noise = float(np.median(days[expected > 0] / expected[expected > 0]))
    return np.asarray(noise * np.diff(np.interp(edges / HOUR, np.arange(len(calm)), calm)), dtype=np.float64)


def _row(one: Forecast, later: Series, truth: Floats) -> dict[str, float]:
    """Errors over the next week; none when less than four fifths of it became known."""
    season = WEEK // one.step
    seen = spread(later, one.starts[season - 1] + one.step * HOUR, one.step, 2 * season)
    naive, came = seen[:season], seen[season:]
    there = np.isfinite(naive) & np.isfinite(came)
    if there.mean() < 0.8:
        return {"model": 0.0, "naive": 0.0, "truth": 0.0}
    said = {"model": one.middle[:season], "naive": naive, "truth": truth}
    return {name: float(np.abs(each - came)[there].sum()) for name, each in said.items()}


def series_of_weeks(weeks: pd.DataFrame) -> pd.DataFrame:
    """A row per disk with `LEAST_WEEKS` or more: class, step, `ratio` of all errors, and `chance`, how likely so large
    a loss is where the forecast is as good as the baseline; `loser` after Holm's rule.
    """
    rows = []
    for (vm, disk), each in weeks.groupby(["vm", "disk"]):
        if len(each) >= LEAST_WEEKS:
            lost = ((each["model"] - each["naive"]) / each["naive"].mean()).to_numpy()
            ratio = each["model"].sum() / each["naive"].sum()
            first = each.iloc[0]
            rows.append((vm, disk, first["class"], first["step"], ratio, chance_of(lost)))
    table = pd.DataFrame(rows, columns=["vm", "disk", "class", "step", "ratio", "chance"])
    return table.assign(loser=holm(table["chance"].to_numpy()))


def chance_of(lost: Floats) -> float:
    """How likely a mean at least as large is where nothing is lost; of what was lost week by week."""
    count, apart = len(lost), lost - lost.mean()
    alone = float((apart**2).mean())
    both = alone + 2 * float((apart[1:] * apart[:-1]).sum()) / count
    error = np.sqrt(max(both, alone / count) / count)  # a sum of dependent ones may come out as nothing
    smaller = np.sqrt((count - 3 + 2 / count) / count)  # two weeks are one horizon: h = 2 of the paper
    return float(stdtr(count - 1, -smaller * lost.mean() / max(error, 1e-12)))


def holm(chances: Floats) -> np.typing.NDArray[np.bool_]:
    """Which of many are beyond chance, when all of them together may be so by mistake in `CHANCE` of cases."""
    order = np.argsort(chances)
    below = chances[order] <= CHANCE / np.arange(len(chances), 0, -1)
    out = np.zeros(len(chances), dtype=np.bool_)
    out[order] = np.cumprod(below).astype(np.bool_)
    return out


def show(weeks: pd.DataFrame) -> None:
    """Print by class and step how often weeks are over 1.0, for the forecast and for `truth`; and the series."""
    each = weeks.assign(model=weeks["model"] / weeks["naive"], truth=weeks["truth"] / weeks["naive"])
    for groups in (each.groupby(["class", "step"]), each.groupby("step")):
        columns = {"weeks": groups.size()}
        for name in ("model", "truth"):
            columns[f"{name} p90"] = groups[name].quantile(0.9)
            columns[f"{name} over 1"] = groups[name].apply(lambda some: (some > 1).mean())
        columns["worst"] = groups["model"].max()
        print(pd.DataFrame(columns).round(3))
    series = series_of_weeks(weeks)
    over, ratios = series[series["ratio"] > 1], series["ratio"]
    print(
        f"{len(series)} series: {len(over)} over 1.0 in all weeks together, ninth decile {ratios.quantile(0.9):.2f}, "
        f"worst {ratios.max():.2f}; {(series['chance'] < CHANCE).sum()} by more than noise at 5 % each, "
        f"{series['loser'].sum()} at 5 % of all together"
    )
    if len(over):
        print(over.sort_values("ratio").round(3).to_string(index=False))
