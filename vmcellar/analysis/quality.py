"""The quality of history, looked at before any analysis: what fails is set aside with its reasons, and shown.

`suites/history.json` is a Great Expectations suite, the one place where the rules stand. `quarantine` evaluates it with
plain pandas, in seconds for millions of rows; `validate` has Great Expectations itself judge the same suite, for
reports. A test holds that both name the same rows.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vmcellar import expectations
from vmcellar.analysis.history import HISTORY, conform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

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
    named = (
        (history["vm"] != "") & (history["disk"] != "") & history["kind"].isin(["full", "incremental", "differential"])
    )
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


PART = 200_000
"""Rows that Great Expectations judges at once: it copies its table for every expectation."""


def validate(frame: pd.DataFrame, now: float | None = None, part: int = PART) -> Verdict:
    """Have Great Expectations judge a history by the same suite, about `part` rows at a time; the first call of a
    process takes 10 s to load it.

    `missed` has the row numbers of `conform(frame)` by the expectation's reason.
    """
    rules = suite()
    checked = derived(conform(frame), now)[_columns(rules)]
    tallies = {rule["meta"]["reason"]: _Tally(rule) for rule in rules["expectations"]}
    for rows in _parts(checked, part):
        plain = rows.astype({name: "object" for name in rows.columns if HISTORY.get(name) == "category"})
        for result in expectations.outcomes(plain, rules):  # in an order of its own
            tallies[result.expectation_config.meta["reason"]].add(result)
    missed = {reason: tuple(sorted(tally.rows)) for reason, tally in tallies.items() if tally.missed}
    critical = {reason for reason, tally in tallies.items() if tally.rule["meta"]["severity"] == "critical"}
    return Verdict(not (missed.keys() & critical), missed)


def _columns(rules: Mapping[str, Any]) -> list[str]:
    """Those that the rules name, and the run."""
    named: tuple[str, ...] = ("run_id",)
    for rule in rules["expectations"]:
        kwargs = rule["kwargs"]
        one = (kwargs[name] for name in ("column", "column_A", "column_B") if name in kwargs)
        named += (*one, *kwargs.get("column_list", ()))
    return list(dict.fromkeys(named))


def _parts(checked: pd.DataFrame, part: int) -> Iterator[pd.DataFrame]:
    """All rows of one run in one part, so that two of one disk meet there; what else a rule compares is in the row."""
    count = -(-len(checked) // part)
    if count < 2:
        yield checked
        return
    where = pd.util.hash_array(checked["run_id"].to_numpy(dtype=object), categorize=False) % np.uint64(count)
    for number in range(count):
        yield checked[where == number]


@dataclass(slots=True)
class _Tally:
    """What Great Expectations said of one expectation, summed over parts."""

    rule: Mapping[str, Any]
    rows: list[int] = field(default_factory=list)
    known: int = 0
    broken: bool = False

    @property
    def missed(self) -> bool:
        """As the library has it: a share of the rows that hold a value may miss it (`mostly`)."""
        return self.broken or len(self.rows) > (1 - self.rule["kwargs"].get("mostly", 1.0)) * self.known

    def add(self, result: Any) -> None:
        """A part's result; one that failed without naming a row could not be judged."""
        told = result.result
        rows = [int(row) for row in told.get("unexpected_index_list") or ()]
        self.rows += rows
        self.known += told.get("element_count", 0) - told.get("missing_count", 0)
        self.broken |= not result.success and not rows
