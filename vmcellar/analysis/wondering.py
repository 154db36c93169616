"""The scenarios that are worth a look on every host: today's settings, and one change of each at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from vmcellar.analysis.storing import cheapest_rule, kept_days, rule_text, rule_today
from vmcellar.analysis.whatif import Outcome, Scenario, outcome, past_of
from vmcellar.backup.report import size_text

if TYPE_CHECKING:
    from vmcellar.config.model import Config
    from vmcellar.repository.repository import Repository

DAY = 86400.0
MIB = 1 << 20


def outcomes(
    repository: Repository, config: Config, frame: pd.DataFrame, now: float, older: pd.DataFrame | None = None
) -> list[Outcome]:
    """What today's settings come to, and what they would with another retention, interval, bandwidth or placement.

    `frame` holds good rows, `now` is in seconds since the epoch; `older` see `whatif.past_of`. None without a good run.
    """
    good = frame[frame["ok"]]
    if good.empty:
        return []
    at = pd.Timestamp(now, unit="s", tz="UTC")
    past = past_of(good, at, older)
    keep, rule, prices = kept_days(repository, now), rule_today(config), config.price_tables()
    scenarios = [
        Scenario(f"as now: {round(keep, 1):g} days, {rule_text(rule)}", keep, rule),
        Scenario(f"kept for {round(keep / 2, 1):g} days", keep / 2, rule),
    ]
    if (at - good["started"].min()).total_seconds() >= 2 * keep * DAY:  # else nobody knows what would be kept
        scenarios.append(Scenario(f"kept for {round(2 * keep, 1):g} days", 2 * keep, rule))
    scenarios.append(Scenario("half as often", keep, rule, every=2))
    if (rate := half_the_speed(good)) is not None:
        scenarios.append(Scenario(f"bandwidth {size_text(rate)}/s", keep, rule, rate=float(rate)))
    if (cheapest := cheapest_rule(config, past, keep)) not in (None, rule):
        scenarios.append(Scenario(rule_text(cheapest or ()), keep, cheapest or ()))
    return [outcome(past, scenario, prices) for scenario in scenarios]


def half_the_speed(good: pd.DataFrame) -> int | None:
    """Half of the bytes a second that the fastest tenth of runs read, in whole MiB; None when that is below two."""
    runs = good.groupby("run_id", sort=False).agg(read=("bytes_read", "sum"), seconds=("seconds", "first"))
    speeds = (runs["read"] / runs["seconds"])[(runs["read"] > 0) & (runs["seconds"] > 0)]
    half = float(speeds.quantile(0.9)) / 2 if len(speeds) else 0.0
    return round(half / MIB) * MIB if half >= MIB else None
