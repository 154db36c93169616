"""The quality of history, looked at before any analysis: what fails is set aside with its reasons, and shown.

`suites/history.json` is a Great Expectations suite, the one place where the rules stand. `quarantine` evaluates it with
plain pandas, in seconds for millions of rows; `validate` has Great Expectations itself judge the same suite, for
reports. A test holds that both name the same rows.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vmcellar import expectations
from vmcellar.analysis.history import HISTORY, conform

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Rule = Callable[[pd.DataFrame, Mapping[str, Any]], pd.Series]


@dataclass(frozen=True, slots=True)
class Finding:
    """One expectation of a suite and how many rows missed it; `ok` also when those are few enough (`mostly`)."""

    reason: str
    severity: str
    rows: int
    ok: bool


def suite() -> dict[str, Any]:
    """The suite of histories, as Great Expectations keeps it."""
    found: dict[str, Any] = json.loads(files("vmcellar.analysis").joinpath("suites/history.json").read_text())
    return found


def quarantine(frame: pd.DataFrame, now: float | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of a history that analyses may use, and the others with a column `reasons`.

    `now` (seconds since the epoch, else the present) is what clocks are judged by. KeyError for what is no history.
    """
    history = conform(frame)
    checked = derived(history, now)
    reasons = pd.Series("", index=history.index, dtype="object")
    for expected in suite()["expectations"]:
        if expected["meta"]["severity"] != "critical":
            continue
        missed = _missed(checked, expected)
        if missed.any():
            why = expected["meta"]["reason"]
            reasons[missed] = reasons[missed].where(reasons[missed] == "", reasons[missed] + "; ") + why
    bad = reasons != ""
    if not bad.any():
        return history, history.iloc[:0].assign(reasons=pd.Series(dtype="object"))
    return history[~bad].reset_index(drop=True), history[bad].assign(reasons=reasons[bad]).reset_index(drop=True)


def findings(frame: pd.DataFrame, now: float | None = None) -> list[Finding]:
    """Every expectation of the suite, in its order, with the rows that miss it."""
    checked = derived(conform(frame), now)
    found = []
    for expected in suite()["expectations"]:
        missed = int(_missed(checked, expected).sum())
        enough = missed <= (1 - expected["kwargs"].get("mostly", 1.0)) * len(checked)
        found.append(Finding(expected["meta"]["reason"], expected["meta"]["severity"], missed, enough))
    return found


def derived(history: pd.DataFrame, now: float | None = None) -> pd.DataFrame:
    """A history with the columns that only its rules need.

    `complete`: a run with a point names VM, disk and kind. `age_seconds`: from the start to `now`. `step_seconds`:
    since the last run of the same disk with the same outcome, NaN for the first; `gap_factor`: that by its median.
    `ratio_error`: how far, in parts of one, `ratio` is from what it should be.
    """
    moment = pd.Timestamp(time.time() if now is None else now, unit="s", tz="UTC")
    named = (history["vm"] != "") & (history["disk"] != "") & history["kind"].isin(["full", "incremental"])
    series = history.groupby(["vm", "disk", "ok"], observed=True, sort=False)["started"]
    step = series.diff().dt.total_seconds()
    usual = step.groupby([history["vm"], history["disk"], history["ok"]], observed=True, sort=False).transform("median")
    right = (history["bytes_new"] / history["bytes_stored"]).where(history["bytes_stored"] != 0)
    error = (history["ratio"] / right - 1).abs().replace(np.inf, np.nan)
    wider = history.copy(deep=False)
    wider["complete"] = named | ~history["ok"]
    wider["age_seconds"] = (moment - history["started"]).dt.total_seconds()
    wider["step_seconds"] = step
    wider["gap_factor"] = (step / usual).replace(np.inf, np.nan)
    wider["ratio_error"] = error
    return wider


def _missed(frame: pd.DataFrame, expected: Mapping[str, Any]) -> pd.Series:
    rule: Rule = _RULES[expected["type"]]
    return rule(frame, expected["kwargs"])


def _is_null(frame: pd.DataFrame, rule: Mapping[str, Any]) -> pd.Series:
    missed: pd.Series = frame[rule["column"]].isna()
    return missed


def _outside(frame: pd.DataFrame, rule: Mapping[str, Any]) -> pd.Series:
    values = frame[rule["column"]]
    missed = pd.Series(False, index=frame.index)
    if "min_value" in rule:
        missed |= values <= rule["min_value"] if rule.get("strict_min") else values < rule["min_value"]
    if "max_value" in rule:
        missed |= values > rule["max_value"]
    return missed  # nothing is known of NaN, so it misses nothing


def _not_in_set(frame: pd.DataFrame, rule: Mapping[str, Any]) -> pd.Series:
    missed: pd.Series = ~frame[rule["column"]].isin(rule["value_set"])
    return missed


def _less_than(frame: pd.DataFrame, rule: Mapping[str, Any]) -> pd.Series:
    missed: pd.Series = frame[rule["column_A"]] < frame[rule["column_B"]]
    return missed


def _not_unique(frame: pd.DataFrame, rule: Mapping[str, Any]) -> pd.Series:
    return frame.duplicated(rule["column_list"], keep=False)


_RULES: dict[str, Rule] = {
    "expect_column_values_to_not_be_null": _is_null,
    "expect_column_values_to_be_between": _outside,
    "expect_column_values_to_be_in_set": _not_in_set,
    "expect_column_pair_values_a_to_be_greater_than_b": _less_than,
    "expect_compound_columns_to_be_unique": _not_unique,
}
"""What the suite may ask; the second of a pair may be as large as the first (`or_equal`)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What Great Expectations said: `ok` when no critical expectation was missed, and the rows of each that was."""

    ok: bool
    missed: dict[str, tuple[int, ...]]


def validate(frame: pd.DataFrame, now: float | None = None) -> Verdict:
    """Have Great Expectations judge a history by the same suite; the first call of a process takes 10 s to load it.

    `missed` has the row numbers of `conform(frame)` by the expectation's reason.
    """
    rules = suite()
    checked = derived(conform(frame), now)
    plain = checked.astype({name: "object" for name, dtype in HISTORY.items() if dtype == "category"})
    missed = {}
    for result in expectations.outcomes(plain, rules):
        if not result.success:
            rows = result.result.get("unexpected_index_list") or ()
            missed[result.expectation_config.meta["reason"]] = tuple(int(row) for row in rows)
    critical = {rule["meta"]["reason"] for rule in rules["expectations"] if rule["meta"]["severity"] == "critical"}
    return Verdict(not (missed.keys() & critical), missed)
