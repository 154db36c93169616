"""How good the next run's size and duration, and a tier's date to full, are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from vmcellar.analysis.fill import Fill, fill_of
from vmcellar.analysis.forecast import forecast_change
from vmcellar.analysis.grid import seconds_of
from vmcellar.analysis.intervals import LEVELS
from vmcellar.analysis.next_run import next_runs
from vmcellar.analysis.sample import Sample, Settings, generate

DAY = 86400.0


def alike(sample: Sample) -> Sample:
    """The same, but second disks change exactly as first ones do, instead of independently."""
    frame = sample.frame.set_index(["vm", "run_id"])
    first, second = (frame["disk"] == disk for disk in ("vda", "vdb"))
    figures = ["bytes_changed", "bytes_stored", "bytes_new"]
    both = frame.index[second]
    frame.loc[second, figures] = frame.loc[first, figures].reindex(both).to_numpy()
    return replace(sample, frame=frame.reset_index()[list(sample.frame.columns)])


def score_next_runs(sample: Sample, cuts: tuple[int, ...], least_disks: int = 1) -> pd.DataFrame:
    """By figure: median of the absolute ratio error, and the share of next runs inside each interval, of VMs with so
    many disks.
    """
    rows = []
    started = seconds_of(sample.frame["started"])
    for cut in cuts:
        now = sample.start.timestamp() + cut * DAY
        outlook = forecast_change(sample.frame, now)
        later = sample.frame[(started > now) & sample.frame["ok"].to_numpy()]
        begins = later.groupby("vm", observed=True)["started"].transform("min")
        firsts = dict(list(later[later["started"] == begins].groupby("vm", observed=True)))
        for one in next_runs(sample.frame, outlook):
            first = firsts.get(one.vm)
            if first is None or len(first) < least_disks or seconds_of(first["started"])[0] > one.due + 3600:
                continue
            for name, said, came in (
                ("changed", one.changed, first["bytes_changed"].sum()),
                ("stored", one.stored, first["bytes_stored"].sum()),
                ("seconds", one.seconds, first["seconds"].iloc[0]),
            ):
                if said.high[80] <= 0:
                    continue
                inside = {f"in{x}": said.low[x] <= came <= said.high[x] for x in LEVELS}
                rows.append({"what": name, "miss": abs(np.log((came + 1) / (said.middle + 1))), **inside})
    groups = pd.DataFrame(rows).groupby("what")
    return pd.DataFrame(
        {
            "runs": groups.size(),
            "miss": np.exp(groups["miss"].median()) - 1,
            **{f"in{x}": groups[f"in{x}"].mean() for x in LEVELS},
        }
    )


def score_fill(settings: Settings, seeds: int, days: int = 30) -> pd.DataFrame:
    """By seed: the capacity is what is really used `days` days after the cut; which day does the forecast name?"""
    rows = []
    for number in range(seeds):
        sample = generate(replace(settings, seed=settings.seed + 100 + number))
        now = sample.start.timestamp() + (settings.days - days - 1) * DAY
        used = _used(sample, now)
        made: Fill = fill_of(sample.frame, "hot", used, now)
        capacity = _used(sample, now + days * DAY)
        said = made.days_to(capacity)
        inside = {}
        for level in LEVELS:
            early, late = made.days_between(capacity, level)
            inside[f"in{level}"] = (early or 0.0) <= days <= (late or np.inf)
        rows.append(
            {"seed": number, "said": said or np.inf, "within10": abs((said or np.inf) - days) <= 0.1 * days, **inside}
        )
    return pd.DataFrame(rows)


def _used(sample: Sample, moment: float) -> float:
    seen = seconds_of(sample.frame["started"]) <= moment
    return float(sample.frame.loc[seen, "bytes_stored"].sum())
