"""What is strange about a VM's latest backups, judged by that VM's own past alone.

Every figure is compared with what was usual before the week it lies in: change with the forecast of the weekly model,
the others with median and MAD of the eight weeks before. So nothing here knows the future, and an attack of a few days
does not become usual. A run of the same kind of strangeness is one anomaly, at the time it was first seen.

| kind | what is seen |
|---|---|
| `ransomware` | entropy up, ratio down, dedup down and change up together: what encryption in the guest looks like |
| `change` | far more change than this VM ever showed at this hour |
| `stuck` | nothing changed when something always does: a stuck bitmap, or the wrong disk |
| `slow` | runs take far longer than their change explains, several in a row |
| `freeze` | the guest was frozen far longer than usual |
| `growth` | a lasting shift upwards of the level of change within the last three weeks |
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, tzinfo
from typing import TYPE_CHECKING

import numpy as np

from vmcellar.analysis import regimes
from vmcellar.analysis.clock import as_then, by_the_clock
from vmcellar.analysis.grid import HOUR, Grid, grids, seconds_of, series_of
from vmcellar.analysis.models import quiet_median, to_log, weekly

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

KINDS = ("ransomware", "change", "stuck", "slow", "freeze", "growth")
STATED = {"ransomware": 0.05, "change": 0.5, "stuck": 0.05, "slow": 0.05, "freeze": 0.05}
"""False alarms per VM and year that docs/analysis.md measured to be an upper bound, on histories of known truth."""
PAST_WEEKS = 8
LEAST_WEEKS = 3
CAP = 6.0
EVIDENCE = 12.0
UNUSUAL = 5.0
BEYOND = 1.4
SLOW_RUNS = 3
LEAST_FROZEN = 2.0
MERGE_HOURS = 72.0
ZEROS = {1: 3, 6: 2, 24: 1}
"""How many unexpected steps without any change are a stuck bitmap, by hours of the step."""
UNSEEN_STEPS = {"ransomware": 2, "slow": SLOW_RUNS}
"""How many steps a kind may last before it is seen, where that is not one; of `stuck` see `ZEROS`."""
USUAL = weekly(decay=0.9, share=0.3, follow=0.9)


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One strange thing: `at` when it was first seen and `last` when it was seen last (ends of steps, seconds since
    the epoch); `score` how many times its threshold; `text` says what was seen against what is usual. What is older
    than `began` can be trusted: it lies before `at` by as many steps as it may take to see this kind.
    """

    vm: str
    disk: str
    kind: str
    at: float
    last: float
    score: float
    text: str
    began: float


@dataclass(slots=True)
class Signals:
    """Of one grid, per disk and step: how unusual each figure is, in robust standard deviations; NaN before
    `LEAST_WEEKS` weeks of history.
    """

    change: Floats
    entropy: Floats
    ratio: Floats
    dedup: Floats
    slow: Floats
    frozen: Floats
    zeros: Floats
    seen: dict[str, Floats] = field(default_factory=dict)
    usual: dict[str, Floats] = field(default_factory=dict)


def find(frame: pd.DataFrame, now: float | None = None, days: float = 7.0, zone: tzinfo = UTC) -> list[Anomaly]:
    """The anomalies of the last `days` days before `now` (seconds since the epoch; else the last start), by time.

    What is usual at an hour goes by the clock of `zone`, summer time and all.
    """
    if frame.empty:
        return []
    moment = float(seconds_of(frame["started"]).max()) if now is None else now
    known = by_the_clock(frame[seconds_of(frame["started"]) <= moment], zone, moment)
    series = [one for one in series_of(known) if len(one.ends) > 2]
    weeks = int(np.ceil(days / 7)) + PAST_WEEKS + LEAST_WEEKS
    found = []
    for grid in grids(series, moment, weeks=weeks):
        signals = signals_of(grid, known)
        for kind, score in scores_of(grid, signals).items():
            found += _anomalies(grid, kind, score, signals, moment - days * 86400)
        found += _growth(grid, moment - days * 86400)
    found = [_as_then(one, zone, moment) for one in found]
    return sorted(found, key=lambda one: (one.at, one.vm, one.disk, one.kind))


def _as_then(one: Anomaly, zone: tzinfo, now: float) -> Anomaly:
    at, last, began = as_then(np.array([one.at, one.last, one.began]), zone, now).tolist()
    return replace(one, at=at, last=last, began=began)


def signals_of(grid: Grid, frame: pd.DataFrame) -> Signals:
    """How unusual every step is, week by week, each week against what was known before it."""
    logs = to_log(grid.values)
    count = logs.shape[1]
    month_ends = regimes.month_end_steps(grid, -count, 0)
    logs -= regimes.month_end_effect(grid, logs, month_ends)[:, None] * month_ends
    runs = figures_of(grid, frame)
    full = np.isnan(grid.values)
    blank = np.full_like(logs, np.nan)
    change, entropy, ratio, same, slow, frozen = (blank.copy() for _ in range(6))
    zeros = _unexpected_zeros(np.where(full, np.nan, runs["changed"]), grid.season)
    signals = Signals(change, entropy, ratio, same, slow, frozen, zeros)
    signals.seen = {
        "change": np.where(full, runs["changed"], grid.values),
        "entropy": runs["entropy"],
        "ratio": np.log(np.maximum(runs["ratio"], 1e-3)),
        "dedup": runs["dedup"],
        "slow": np.log(np.maximum(runs["seconds"], 1e-3)) - _usual_log_seconds(runs["size"], runs["seconds"]),
        "frozen": np.log(np.maximum(runs["frozen"], 1e-3)),
    }
    signals.usual = {"change": blank.copy(), **{name: blank.copy() for name in _FLOORS}}
    errors = blank.copy()
    for begin in range(LEAST_WEEKS * grid.season, count, grid.season):
        _week(signals, logs, errors, begin, grid.season)
    return signals


def figures_of(grid: Grid, frame: pd.DataFrame) -> dict[str, Floats]:
    """What the runs of each step found: of several in one step `changed` is their sum, `entropy`, `ratio` and `dedup`
    are those of all that they stored, `size` (changed) and `seconds` their means, `frozen` the longest.

    The first four are of incremental runs alone, whatever time lies before them: what changed in an outage nobody can
    spread over its hours, but how it looks tells as much as ever.
    """
    incremental = frame["kind"].to_numpy() == "incremental"
    column = {name: frame[name].to_numpy().astype(np.float64) for name in _COLUMNS}
    own = {name: np.where(incremental, values, np.nan) for name, values in column.items()}
    changed, zero, new, stored = (grid.panel(own[f"bytes_{name}"]) for name in ("changed", "zero", "new", "stored"))
    weight = np.where(np.isnan(own["entropy"]), np.nan, np.maximum(own["bytes_new"], 1.0))
    content = np.maximum(changed - zero, 1.0)

    def mean(values: Floats) -> Floats:
        return grid.panel(values) / grid.panel(np.where(np.isnan(values), np.nan, 1.0))

    return {
        "changed": changed,
        "entropy": grid.panel(own["entropy"] * weight) / grid.panel(weight),
        "ratio": np.where(stored > 0, new, np.nan) / np.maximum(stored, 1.0),
        "dedup": np.where(changed <= 0, np.nan, 1 - new / content),
        "size": mean(column["bytes_changed"]),
        "seconds": mean(column["seconds"]),
        "frozen": grid.panel(column["seconds_frozen"], np.maximum),
    }


_COLUMNS = ("bytes_changed", "bytes_zero", "bytes_new", "bytes_stored", "entropy", "seconds", "seconds_frozen")
_FLOORS = {"entropy": 0.15, "ratio": 0.05, "dedup": 0.02, "slow": 0.08, "frozen": 0.15}
"""The least spread that is taken for usual: below it, differences do not matter to anyone."""


def _week(signals: Signals, logs: Floats, errors: Floats, begin: int, season: int) -> None:
    """Fill one week of all signals from what came before it."""
    week = slice(begin, min(begin + season, logs.shape[1]))
    past = slice(max(begin - PAST_WEEKS * season, 0), begin)
    expected = USUAL(logs[:, :begin], season, season)[:, : week.stop - begin]
    errors[:, week] = logs[:, week] - expected
    signals.usual["change"][:, week] = np.exp(expected)
    known = errors[:, past]
    if np.isfinite(known).any():
        spread = np.maximum(1.4826 * quiet_median(np.abs(known), axis=1, keepdims=True), 0.1)
        scaled = errors[:, week] / spread
        extreme = np.nan_to_num(np.fmax.reduce(known, axis=1, initial=0.0)[:, None] / spread)
        signals.change[:, week] = scaled / np.maximum(BEYOND * extreme / UNUSUAL, 1.0)
    for name, floor in _FLOORS.items():
        values = signals.seen[name]
        middle = quiet_median(values[:, past], axis=1, keepdims=True)
        spread = np.maximum(1.4826 * quiet_median(np.abs(values[:, past] - middle), axis=1, keepdims=True), floor)
        getattr(signals, name)[:, week] = (values[:, week] - middle) / spread
        signals.usual[name][:, week] = middle


def _usual_log_seconds(changed: Floats, seconds: Floats) -> Floats:
    """Logarithm of how long a run with this much change usually takes: a line through the disk's runs, weighted so
    that ratios count.
    """
    known = np.isfinite(changed) & np.isfinite(seconds) & (seconds > 0)
    weight = np.where(known, 1 / np.maximum(seconds, 1e-3), 0.0) ** 2
    size, took = np.where(known, changed, 0.0), np.where(known, seconds, 0.0)
    total = np.maximum(weight.sum(axis=1), 1e-12)
    size_mean, took_mean = (weight * size).sum(axis=1) / total, (weight * took).sum(axis=1) / total
    away = size - size_mean[:, None]
    slope = (weight * away * took).sum(axis=1) / np.maximum((weight * away**2).sum(axis=1), 1e-12)
    line = took_mean[:, None] + np.maximum(slope, 0.0)[:, None] * away
    return np.asarray(np.log(np.maximum(line, 0.1 * took_mean[:, None] + 1e-3)), dtype=np.float64)


def _unexpected_zeros(changed: Floats, season: int) -> Floats:
    """How many steps in a row, up to each, had no change though their hour of the week had some in all weeks before."""
    weeks = changed.shape[1] // season
    table = changed[:, -weeks * season :].reshape(len(changed), weeks, season)
    zero, known = table == 0, np.isfinite(table)
    quiet = np.cumsum(zero, axis=1) - zero
    told = np.cumsum(known, axis=1) - known
    unexpected = (zero & (quiet == 0) & (told >= 2)).reshape(len(table), -1)
    silent = (zero | ~known).reshape(len(table), -1)
    out = np.zeros(changed.shape)
    length = np.zeros(len(table))
    offset = changed.shape[1] - weeks * season
    for step in range(weeks * season):
        length = np.where(unexpected[:, step], length + 1, np.where(silent[:, step], length, 0.0))
        out[:, offset + step] = np.where(unexpected[:, step], length, 0.0)
    return out


def scores_of(grid: Grid, signals: Signals) -> dict[str, Floats]:
    """By kind, per disk and step: at one and above it is an anomaly."""
    up = np.clip(np.nan_to_num(signals.entropy), 0, CAP) + np.clip(np.nan_to_num(-signals.ratio), 0, CAP)
    more = np.clip(np.nan_to_num(signals.change), 0, CAP)
    unlike = np.clip(np.nan_to_num(-signals.dedup), 0, CAP)
    telling = (up >= UNUSUAL) & ((more >= 1.0) | (unlike >= 2.0))
    encrypting = np.where(telling, (up + unlike + more) / EVIDENCE, 0.0)
    slow = np.nan_to_num(signals.slow) / UNUSUAL
    long_slow = np.minimum.reduce([_before(slow, back) for back in range(SLOW_RUNS)])
    frozen = np.where(np.exp(signals.seen["frozen"]) >= LEAST_FROZEN, np.nan_to_num(signals.frozen) / UNUSUAL, 0.0)
    return {
        "ransomware": encrypting,
        "change": np.nan_to_num(signals.change) / UNUSUAL,
        "stuck": signals.zeros / ZEROS[grid.step],
        "slow": long_slow,
        "freeze": frozen,
    }


def _before(values: Floats, steps: int) -> Floats:
    return np.pad(values, ((0, 0), (steps, 0)))[:, : values.shape[1]]


def _anomalies(grid: Grid, kind: str, score: Floats, signals: Signals, since: float) -> list[Anomaly]:
    """Steps over the threshold since a moment, those close to each other as one."""
    found = []
    last = score.shape[1] - 1
    for row in np.flatnonzero((score >= 1).any(axis=1)):
        one = grid.series[row]
        steps = np.flatnonzero(score[row] >= 1)
        times = grid.ends[row] - (last - steps) * grid.step * HOUR
        for part in np.split(np.arange(len(steps)), np.flatnonzero(np.diff(times) > MERGE_HOURS * HOUR) + 1):
            if times[part[-1]] < since:
                continue
            best = steps[part[np.argmax(score[row, steps[part]])]]
            text = _text(kind, signals, int(row), int(best))
            at, until = float(times[part[0]]), float(times[part[-1]])
            began = at - _steps_unseen(kind, grid.step) * grid.step * HOUR
            found.append(Anomaly(one.vm, one.disk, kind, at, until, float(score[row, best]), text, began))
    return found


def _steps_unseen(kind: str, step: int) -> int:
    return ZEROS[step] if kind == "stuck" else UNSEEN_STEPS.get(kind, 1)


def _text(kind: str, signals: Signals, row: int, step: int) -> str:
    """What was seen against what is usual."""

    def pair(name: str) -> tuple[float, float]:
        return float(signals.seen[name][row, step]), float(signals.usual[name][row, step])

    came, usual = pair("change")
    change = f"{came / 2**20:.0f} MiB changed, usual is {usual / 2**20:.0f} MiB"
    if kind == "ransomware":
        entropy, ratio, dedup = pair("entropy"), pair("ratio"), pair("dedup")
        return (
            f"entropy {entropy[0]:.2f} (usual {entropy[1]:.2f}) bits per byte, ratio {np.exp(ratio[0]):.2f} "
            f"({np.exp(ratio[1]):.2f}), found again {dedup[0]:.0%} ({dedup[1]:.0%}); {change}"
        )
    if kind == "slow":
        times = np.exp(np.subtract(*pair("slow")))
        return f"{SLOW_RUNS} runs in a row took {times:.1f} times as long as their change explains"
    if kind == "freeze":
        frozen = np.exp(pair("frozen"))
        return f"the guest was frozen for {frozen[0]:.1f} s, usual is {frozen[1]:.2f} s"
    return f"nothing changed, usual is {usual / 2**20:.0f} MiB" if kind == "stuck" else change


def _growth(grid: Grid, since: float) -> list[Anomaly]:
    """Lasting shifts upwards that began since `since`, or within three weeks where that is longer ago."""
    kept = regimes.separate(grid, to_log(grid.values))
    found = []
    for row in np.flatnonzero((kept.shift_days >= 0) & (kept.shift_days <= 21) & (kept.shift > np.log(2))):
        at = float(grid.ends[row] - kept.shift_days[row] * 86400)
        if at >= min(since, grid.ends[row] - 21 * 86400):
            times = float(np.exp(kept.shift[row]))
            text = f"change is {times:.1f} times what it was, for {kept.shift_days[row]} days now"
            one = grid.series[row]
            found.append(Anomaly(one.vm, one.disk, "growth", at, float(grid.ends[row]), times / 2, text, at))
    return found
