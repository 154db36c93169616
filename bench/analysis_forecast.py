"""How good forecasts are: against what came later in a history, as later runs saw it.

MASE here is the mean absolute error of the model over the next week by that of the seasonal naive forecast (the same
step of the last known week) over the same steps; below one is better. The mean over disks is the geometric one, so that
no disk counts more for being large. Steps of which the forecast is that surely nothing changes are not counted for the
coverage of intervals: they would make it look better.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, tzinfo
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from vmcellar.analysis.forecast import Forecast, forecast_change
from vmcellar.analysis.grid import HOUR, WEEK, Series, series_of, spread
from vmcellar.analysis.models import BASELINE
from vmcellar.analysis.sample import Sample

DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Score:
    """A row per disk and cut: class, step, mase, share of steps inside each interval, baseline or not."""

    table: pd.DataFrame
    refused: int

    def mase(self, kind: str) -> float:
        """Geometric mean over the disks of a class."""
        return float(np.exp(np.log(self.table.loc[self.table["class"] == kind, "mase"]).mean()))

    def worst(self, kind: str) -> float:
        """The ninth decile of a class."""
        return float(self.table.loc[self.table["class"] == kind, "mase"].quantile(0.9))

    def coverage(self, level: int) -> float:
        """Share of all steps of both weeks that the interval held."""
        return float(self.table[f"inside{level}"].sum() / self.table["known"].sum())

    def by_class(self) -> pd.DataFrame:
        """The figures of docs/analysis.md."""
        groups = self.table.groupby(["class", "step"])
        out = pd.DataFrame(
            {
                "series": groups.size(),
                "mase": groups["mase"].apply(lambda values: np.exp(np.log(values).mean())),
                "p90": groups["mase"].quantile(0.9),
                "baseline": groups["baseline"].mean(),
                "in80": groups["inside80"].sum() / groups["known"].sum(),
                "in95": groups["inside95"].sum() / groups["known"].sum(),
                "total": groups["said"].sum() / groups["came"].sum(),
            }
        )
        return out.round(3)


def in_zone(sample: Sample, zone: ZoneInfo) -> Sample:
    """The same with its times as a zone's clock shows them; runs in the hour that it leaves out are not there."""
    frame = sample.frame
    times = frame["started"].dt.tz_localize(None).dt.tz_localize(zone, nonexistent="NaT", ambiguous=False)
    there = times.notna().to_numpy()
    return replace(sample, frame=frame[there].assign(started=times[there].dt.tz_convert("UTC")))


def score_forecasts(sample: Sample, cuts: tuple[int, ...], zone: tzinfo = UTC) -> Score:
    """Forecast two weeks at each cut (days from the start), from what was known then, by a zone's clock."""
    kinds = dict(zip(zip(sample.truth["vm"], sample.truth["disk"], strict=True), sample.truth["class"], strict=True))
    later = {(one.vm, one.disk): one for one in series_of(sample.frame)}
    rows: list[dict[str, object]] = []
    refused = 0
    for cut in cuts:
        outlook = forecast_change(sample.frame, sample.start.timestamp() + cut * DAY, zone)
        refused += len(outlook.refusals)
        for one in outlook.forecasts:
            row = _row(one, later[one.vm, one.disk])
            if row:
                rows.append({"class": kinds[one.vm, one.disk], **row})
    return Score(pd.DataFrame(rows), refused)


def _row(one: Forecast, later: Series) -> dict[str, object]:
    """Figures of one forecast; empty when less than four fifths of the next week became known."""
    season = WEEK // one.step
    end = one.starts[-1] + one.step * HOUR
    seen = spread(later, end, one.step, len(one.starts) + season)
    naive, truth = seen[:season], seen[season:]
    compared = np.isfinite(truth[:season]) & np.isfinite(naive)
    if compared.mean() < 0.8:
        return {}
    known = np.isfinite(truth) & (one.high[80] > 0)
    base = np.abs(naive - truth[:season])[compared].mean()
    miss = np.abs(one.middle - truth)[:season][compared].mean()
    inside = {
        f"inside{level}": int(((truth >= one.low[level]) & (truth <= one.high[level]))[known].sum())
        for level in (80, 95)
    }
    return {
        "step": one.step,
        "mase": miss / base if base > 0 else 1.0,
        "baseline": one.model == BASELINE,
        "known": int(known.sum()),
        "said": one.mean[known].sum(),
        "came": truth[known].sum(),
        **inside,
    }
