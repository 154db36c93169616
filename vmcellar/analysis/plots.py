"""Plots of the history: each function takes frames and results of this room and gives a matplotlib figure.

Nothing is computed here beyond sums for the eye. Times are UTC. `figures.png` makes the bytes of a PNG.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.dates as mdates
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm

from vmcellar.analysis.figures import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    RED,
    SERIES,
    SOFT,
    in_bytes,
    in_time,
    label_end,
    legend,
    need,
    nothing,
    rows_of,
    sheet,
)
from vmcellar.analysis.grid import seconds_of
from vmcellar.analysis.objectives import exposure
from vmcellar.policy.costs import money_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vmcellar.analysis.anomalies import Anomaly
    from vmcellar.analysis.capacity import TierCapacity
    from vmcellar.analysis.fill import Fill
    from vmcellar.analysis.forecast import Forecast
    from vmcellar.analysis.heat import HeatMap
    from vmcellar.analysis.whatif import Outcome

DAY = 86400.0
HEAT = "YlGnBu"


def tier_fill(frame: pd.DataFrame, fill: Fill, room: float | None, days: int = 120) -> Figure:
    """A tier's bytes: what was stored up to now, and the forecast with its intervals; `room` is used plus free."""
    title = f"Tier {fill.tier}"
    if fill.refusal:
        return nothing(title, f"No forecast: {fill.refusal}.")
    past_days, past = _stored_until_now(frame, fill, days)
    ahead = np.arange(min(days, len(fill.used) - 1) + 1)
    top = 1.3 * max(float(fill.used[ahead[-1]]), room or 0.0, 1.0)  # wide intervals may leave the sheet
    scale, unit = in_bytes(top)
    when = fill.days_to(room) if room else None
    daily, daily_unit = in_bytes(fill.per_day)
    about = f"grows by {fill.per_day / daily:.3g} {daily_unit} a day; " + (
        "full on " + f"{_at(fill.now + when * DAY):%d %B %Y}" if when is not None else "not full within a year"
    )
    figure, (axis,) = sheet(title, about)
    axis.plot(_times(fill.now + past_days * DAY), past / scale, color=INK, linewidth=1.8)
    times = _times(fill.now + ahead * DAY)
    for level, alpha in ((95, 0.15), (80, 0.25)):
        axis.fill_between(
            times, fill.low[level][ahead] / scale, fill.high[level][ahead] / scale, color=BLUE, alpha=alpha, lw=0
        )
    axis.plot(times, fill.used[ahead] / scale, color=BLUE, linewidth=1.8)
    label_end(axis, times[-1], float(fill.used[ahead[-1]] / scale), "forecast\n80 and 95 %", BLUE)
    if room:
        axis.axhline(room / scale, color=RED, linewidth=1.4, linestyle=(0, (5, 3)))
        axis.annotate("full", (times[0], room / scale), (0, 4), textcoords="offset points", color=RED, fontsize=9)
    axis.set_ylim(0, top / scale)
    _dated(axis, f"used, {unit}")
    return figure


def _stored_until_now(frame: pd.DataFrame, fill: Fill, days: int) -> tuple[Any, Any]:
    """Days before now (not above 0) and what was used then, as if nothing had been deleted since."""
    own = frame[(frame["tier"] == fill.tier) & frame["ok"]]
    age = np.ceil((seconds_of(own["started"]) - fill.now) / DAY).astype(int)
    at = np.arange(max(-days, int(age.min()) - 1) if len(age) else 0, 1)
    added = np.array([own["bytes_stored"].to_numpy()[age > day].sum() for day in at], dtype=float)
    return at, np.maximum(fill.used[0] - added, 0.0)


def change_calendar(frame: pd.DataFrame, most: int = 24) -> Figure:
    """What changed on each day in each VM, by incremental backups: a row per VM, those with most change first."""
    rows = frame[frame["ok"] & (frame["kind"] == "incremental")]
    if rows.empty:
        return nothing("Change calendar", "No incremental backup is known.")
    days = rows["started"].dt.floor("D")
    table = rows.groupby([rows["vm"].astype("object"), days])["bytes_changed"].sum().unstack()
    table = table.loc[table.sum(axis=1).sort_values(ascending=False).index[:most]]
    table = table.reindex(columns=pd.date_range(days.min(), days.max(), freq="D"))
    named = pd.DatetimeIndex(table.columns)
    mondays = [int(i) for i in np.flatnonzero(named.dayofweek == 0)]
    ticks, each = (mondays, ". Weeks begin at the ticks") if len(mondays) > 1 else (list(range(len(named))), "")
    about = f"bytes changed per day, by incremental backups; white: none taken{each}"
    figure, (axis,) = sheet("Change calendar", about, height=1.6 + 0.22 * len(table))
    values = table.to_numpy(dtype=float)
    floor = max(1.0, float(np.nanmax(values)) / 3e3)
    top = max(float(np.nanmax(values)), 3 * floor)  # also where nothing changed at all
    scale, unit = in_bytes(top)
    shown = axis.pcolormesh(
        np.arange(values.shape[1] + 1), np.arange(len(table) + 1), np.maximum(values, floor) / scale,
        cmap=HEAT, norm=LogNorm(floor / scale, top / scale),
    )  # fmt: skip
    axis.set_yticks(np.arange(len(table)) + 0.5, [str(vm) for vm in table.index])
    axis.invert_yaxis()
    # Only between VMs: between the days of months it would be as wide as they are, and white means none was taken.
    axis.hlines(np.arange(1, len(table)), 0, table.shape[1], colors="white", linewidth=1.0)
    ticks = ticks[:: max(1, -(-len(ticks) // 8))]
    axis.set_xticks(ticks, [f"{named[i]:%d %b}" for i in ticks])
    _bare(axis)
    figure.colorbar(shown, ax=axis, label=unit, pad=0.01, aspect=15)
    return figure


def week_profile(frame: pd.DataFrame, vm: str) -> Figure:
    """How much of a VM changes at each hour of the week: the mean per hour, from runs of any interval."""
    rows = frame[(frame["vm"] == vm) & frame["ok"] & (frame["kind"] == "incremental")]
    need(len(rows) > 0, f"an incremental run of {vm}")
    rows = rows.assign(hours=rows.groupby("disk", observed=True)["started"].diff().dt.total_seconds() / 3600)
    rows = rows[rows["hours"] > 0]
    rate = rows["bytes_changed"] / rows["hours"]
    table = rate.groupby([rows["started"].dt.dayofweek, rows["started"].dt.hour]).mean().unstack()
    table = table.reindex(index=range(7), columns=range(24))
    scale, unit = in_bytes(float(table.max().max()))
    figure, (axis,) = sheet(f"{vm}: when it changes", "mean change per hour, by weekday and hour (UTC)", height=3.4)
    shown = axis.pcolormesh(table.to_numpy(dtype=float) / scale, cmap=HEAT, edgecolors="white", linewidth=0.5)
    axis.set_yticks(np.arange(7) + 0.5, ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"])
    axis.set_xticks(np.arange(0, 24, 3) + 0.5, [f"{hour:02}" for hour in range(0, 24, 3)])
    axis.invert_yaxis()
    _bare(axis)
    figure.colorbar(shown, ax=axis, label=f"{unit} per hour", pad=0.01, aspect=15)
    return figure


def heat(found: HeatMap | None) -> Figure:
    """A disk's heat map: each row is one backup, newest at the bottom, each column a part of the disk."""
    if found is None:
        return nothing("Where it changes", "Fewer than two points with this disk are left to compare.")
    scale, unit = in_bytes(found.size)
    about = f"part of each {found.cell / in_bytes(found.cell)[0]:.3g} {in_bytes(found.cell)[1]} that changed, by backup"
    about += "; grey: a map is damaged" if found.damaged else ""
    figure, (axis,) = sheet(
        f"{found.vm} {found.disk}: where it changes", about, height=2.4 + min(5.0, 0.07 * len(found.times))
    )
    edges = np.append(np.arange(0, found.size, found.cell), found.size) / scale
    values = np.where(found.changed > 0, np.maximum(found.changed, 1e-4), np.nan)
    rows = np.arange(len(found.times) + 1)
    torn = np.where(np.isnan(found.changed), 1.0, np.nan)
    axis.pcolormesh(edges, rows, torn, cmap="Greys", vmin=0.0, vmax=3.0)
    shown = axis.pcolormesh(edges, rows, values, cmap="YlOrRd", norm=LogNorm(1e-4, 1.0))
    step = max(1, len(found.times) // 12)
    axis.set_yticks(rows[:-1:step] + 0.5, [f"{moment:%d %b %H:%M}" for moment in found.times[::step]])
    axis.invert_yaxis()
    axis.set_xlabel(f"place on the disk, {unit}", color=SOFT, fontsize=9)
    _bare(axis)
    bar = figure.colorbar(shown, ax=axis, pad=0.01, aspect=20, ticks=[1e-4, 1e-2, 1.0])
    bar.ax.set_yticklabels(["0.01 %", "1 %", "all"])
    return figure


TEETH_MOST = 200
"""More teeth than this cannot be told apart."""


def rpo_timeline(frame: pd.DataFrame, targets: Mapping[str, float], now: pd.Timestamp, vms: Sequence[str]) -> Figure:
    """The age of each VM's newest point over time, red where it is beyond the VM's target (seconds)."""
    teeth = exposure(frame[frame["vm"].isin(list(vms))], now)
    if teeth.empty:
        return nothing("Age of the newest point", "No good run of these VMs is known.")
    about = "rises until the next backup is committed (of many, the crests); the dashed line is the target"
    figure, axes = sheet("Age of the newest point", about, height=1.2 + 1.3 * len(vms), rows=len(vms))
    for axis, vm in zip(axes, vms, strict=True):
        own = teeth[teeth["vm"] == vm]
        target = targets.get(vm)
        scale, unit = in_time(max(float(own["worst"].max()) if len(own) else 0.0, target or 0.0))
        _saw(axis, own, target, scale)
        name = f"{vm}\n{unit}" if len(own) else vm
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9, color=INK)
        axis.set_ylim(bottom=0)
    _dates(axes[-1])
    return figure


def _saw(axis: Axes, own: pd.DataFrame, target: float | None, scale: float) -> None:
    if own.empty:
        color = RED if target else SOFT
        axis.text(0.01, 0.4, "no point in this time", fontsize=9, color=color, transform=axis.transAxes)
        axis.set_yticks([])
        return
    if target:
        axis.axhline(target / scale, color=ORANGE, linewidth=1.2, linestyle=(0, (5, 3)))
    if len(own) > TEETH_MOST:
        _crests(axis, own, target, scale)
        return
    times = _times(np.column_stack([seconds_of(own["committed"]), seconds_of(own["until"])]).ravel())
    fresh = (own["committed"] - own["started"]).dt.total_seconds()
    ages = np.column_stack([fresh, own["worst"]]).ravel() / scale
    axis.fill_between(times, 0, ages, color=BLUE, alpha=0.25, lw=0)
    axis.plot(times, ages, color=BLUE, linewidth=0.9)
    if target:
        _over(axis, own[own["worst"] > target], target, scale)


def _crests(axis: Axes, own: pd.DataFrame, target: float | None, scale: float) -> None:
    """Of teeth that would be one block of ink: the oldest that each point became, red beyond the target."""
    times, worst = _times(seconds_of(own["until"])), own["worst"].to_numpy(dtype=float)
    axis.fill_between(times, 0, worst / scale, color=BLUE, alpha=0.25, lw=0)
    axis.plot(times, worst / scale, color=BLUE, linewidth=0.9)
    late = worst > target if target else np.zeros(len(own), bool)
    axis.plot(times[late], worst[late] / scale, color=RED, linestyle="none", marker="o", markersize=4)


def _over(axis: Axes, over: pd.DataFrame, target: float, scale: float) -> None:
    if len(over):
        begin = np.maximum(seconds_of(over["committed"]), seconds_of(over["started"]) + target)
        until, gap = seconds_of(over["until"]), np.full(len(over), np.nan)
        ages = np.column_stack([begin - seconds_of(over["started"]), over["worst"], gap]).ravel() / scale
        spans = _times(np.column_stack([begin, until, until]).ravel())
        axis.fill_between(spans, target / scale, ages, color=RED, alpha=0.8, lw=0)
        axis.plot(_times(until), over["worst"] / scale, color=RED, linestyle="none", marker="o", markersize=3)


def rto(table: pd.DataFrame, targets: Mapping[str, float]) -> Figure:
    """Per VM, the time that its last drill took, what is predicted from all drills, and its target (seconds)."""
    if table.empty or table["predicted"].isna().all():
        return nothing("Time to restore", "No drill is known yet: `vmcellar drill POINT` measures one.")
    longest = float(np.nanmax([table["predicted"].max(), table["measured"].max(), *targets.values()]))
    scale, unit = in_time(longest)
    about = f"{int((table['drills'] > 0).sum())} of {len(table)} VMs were drilled; the bar is predicted from all drills"
    figure, (axis,) = sheet("Time to restore", about, height=1.6 + 0.3 * len(table))
    rows = np.arange(len(table))
    axis.barh(rows, table["predicted"] / scale, color=BLUE, alpha=0.3, height=0.6, label="predicted")
    axis.plot(table["measured"] / scale, rows, "o", color=BLUE, markersize=7, label="last drill")
    wanted = table["vm"].astype("object").map(dict(targets)).astype("float64")
    axis.plot(wanted / scale, rows, "|", color=RED, markersize=16, markeredgewidth=2, label="target")
    rows_of(axis, [str(vm) for vm in table["vm"]])
    axis.set_xlabel(unit, color=SOFT, fontsize=9)
    legend(axis, 3)
    return figure


def change_forecast(frame: pd.DataFrame, made: Forecast, past_days: int = 21) -> Figure:
    """What changed per step of the last weeks, and the next two weeks with their intervals."""
    own = frame[
        (frame["vm"] == made.vm) & (frame["disk"] == made.disk) & frame["ok"] & (frame["kind"] == "incremental")
    ]
    need(len(own) > 0, f"an incremental run of {made.vm} {made.disk}")
    begin = made.starts[0] - past_days * DAY
    seconds = seconds_of(own["started"])
    hours = np.diff(seconds, prepend=np.nan) / 3600
    shown = (seconds >= begin) & (seconds <= made.starts[0]) & (hours > 0)
    rate = own["bytes_changed"].to_numpy()[shown] / hours[shown]
    top = max(float(rate.max()) if len(rate) else 0.0, float(np.max(made.high[80])) / made.step, 1.0)
    scale, unit = in_bytes(top)
    figure, (axis,) = sheet(f"{made.vm} {made.disk}: change per hour", made.note)
    axis.plot(_times(seconds[shown]), rate / scale, color=INK, linewidth=1.0)
    times = _times(made.starts + made.step * 1800.0)
    for level, alpha in ((95, 0.13), (80, 0.25)):
        low, high = made.low[level] / made.step / scale, made.high[level] / made.step / scale
        axis.fill_between(times, low, high, color=BLUE, alpha=alpha, lw=0)
    axis.plot(times, made.middle / made.step / scale, color=BLUE, linewidth=1.4)
    label_end(axis, times[-1], float(made.middle[-1] / made.step / scale), "forecast\n80 and 95 %", BLUE)
    axis.axvline(times[0], color=SOFT, linewidth=0.8)
    axis.set_ylim(0, 1.25 * top / scale)
    _dated(axis, f"{unit} per hour")
    return figure


def incident(frame: pd.DataFrame, vm: str, disk: str, found: Sequence[Anomaly], days: int = 21) -> Figure:
    """A disk's runs around an anomaly: change, entropy, ratio and dedup hits, with what was strange shaded."""
    own = frame[(frame["vm"] == vm) & (frame["disk"] == disk) & frame["ok"] & (frame["kind"] == "incremental")]
    need(len(own) > 0, f"an incremental run of {vm} {disk}")
    last = max((one.last for one in found), default=float(seconds_of(own["started"]).max())) + 2 * DAY
    seconds = seconds_of(own["started"])
    own = own[(seconds > last - days * DAY) & (seconds <= last)]
    scale, unit = in_bytes(float(own["bytes_changed"].max()))
    figures = (
        (f"changed\n{unit}", own["bytes_changed"] / scale, INK), ("entropy\nbits per byte", own["entropy"], RED),
        ("ratio\nnew / stored", own["ratio"], GREEN), ("dedup hits\nper changed GiB", _hits(own), BLUE),
    )  # fmt: skip
    about = "; ".join(f"{one.kind} from {_at(one.at):%d %B %H:%M}" for one in found) or "nothing strange is known"
    figure, axes = sheet(f"{vm} {disk}: what happened", about, height=7.0, rows=len(figures))
    for axis, (name, values, color) in zip(axes, figures, strict=True):
        axis.plot(own["started"], values, color=color, linewidth=1.2, marker="o", markersize=2.5)
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9, color=color)
        axis.set_ylim(bottom=0)
        for one in found:
            axis.axvspan(_at(one.at), _at(max(one.last, one.at + 3600)), color=RED, alpha=0.12, lw=0)  # type: ignore[arg-type]
    _dates(axes[-1])
    return figure


def scenarios(outcomes: Sequence[Outcome], currency: str = "$") -> Figure:
    """What scenarios would hold on each tier, what 30 days of each would cost, and how long its runs would take."""
    tiers = list(dict.fromkeys(tier for one in outcomes for tier in one.held))
    scale, unit = in_bytes(max((one.total for one in outcomes), default=0.0))
    hours, time_unit = in_time(max((one.busy for one in outcomes), default=0.0))
    about = f"left: {unit} on each tier at the end, and the bill of 30 days; right: {time_unit} at work in them"
    figure, (axis, work) = sheet("What it would hold and cost", about, 1.6 + 0.42 * len(outcomes), widths=(3, 1))
    rows, left = np.arange(len(outcomes)), np.zeros(len(outcomes))
    for tier, color in zip(tiers, SERIES, strict=False):
        width = np.array([one.held.get(tier, 0) / scale for one in outcomes])
        axis.barh(rows, width, left=left, color=color, height=0.6, label=tier)
        left += width
    work.barh(rows, [one.busy / hours for one in outcomes], color=SOFT, height=0.6)
    for row, one in enumerate(outcomes):
        if one.bill.total:
            bill = f"{one.bill.total:,.0f}" if one.bill.total >= 10 else money_text(one.bill.total)
            label_end(axis, left[row], float(row), f"{currency}{bill}", INK)
        if one.late:
            label_end(work, one.busy / hours, float(row), f"{one.late} late", RED)
    rows_of(axis, [one.scenario.name for one in outcomes])
    rows_of(work, [""] * len(outcomes))
    legend(axis, len(tiers))
    return figure


def tier_costs(tiers: Sequence[TierCapacity]) -> Figure:
    """What each tier with a price costs a month: now, in 30 days and in a year, with 80 % intervals."""
    priced = [tier for tier in tiers if tier.costs]
    if not priced:
        return nothing("Cost of tiers", "No tier has a price: `prices:` of a tier in vmcellar.yaml gives it one.")
    days = sorted({one.days for tier in priced for one in tier.costs})
    about = "a month's storage, in the currency of the price tables; the lines are 80 % intervals"
    figure, (axis,) = sheet("Cost of tiers", about, height=1.6 + 0.9 * len(priced))
    for place, (after, color) in enumerate(zip(days, SERIES, strict=False)):
        rows = [row for row, tier in enumerate(priced) if any(one.days == after for one in tier.costs)]
        found = [one for tier in priced for one in tier.costs if one.days == after]
        month = np.array([one.month for one in found])
        ends = [np.maximum(month - [one.low for one in found], 0), np.maximum([one.high for one in found] - month, 0)]
        name = "now" if after == 0 else f"in {after} days"
        at = np.array(rows) + (place - (len(days) - 1) / 2) * 0.26
        axis.barh(at, month, height=0.24, color=color, alpha=0.6, xerr=ends, ecolor=INK, label=name)
    rows_of(axis, [tier.tier for tier in priced])
    legend(axis, len(days))
    return figure


def largest(frame: pd.DataFrame, days: int = 30, most: int = 15) -> Figure:
    """Which VMs stored most in the last days of the history, and how much of what they read was new."""
    recent = frame[frame["ok"] & (frame["started"] > frame["started"].max() - pd.Timedelta(days=days))]
    sums = recent.groupby(recent["vm"].astype("object"))[["bytes_stored", "bytes_changed"]].sum()
    sums = sums.sort_values("bytes_stored", ascending=False).head(most)
    if sums.empty:
        return nothing("What was stored", "No run is known.")
    scale, unit = in_bytes(float(sums.to_numpy().max()))
    about = f"{unit} in the last {days} days: dark what it took in packs, light what had changed"
    figure, (axis,) = sheet("What was stored", about, height=1.6 + 0.26 * len(sums))
    rows = np.arange(len(sums))
    axis.barh(rows, sums["bytes_changed"] / scale, color=BLUE, alpha=0.25, height=0.7)
    axis.barh(rows, sums["bytes_stored"] / scale, color=BLUE, height=0.7)
    rows_of(axis, [str(vm) for vm in sums.index])
    return figure


def _hits(own: pd.DataFrame) -> pd.Series:
    hits: pd.Series = own["dedup_hits"] / (own["bytes_changed"].clip(lower=1 << 20) / (1 << 30))
    return hits


def _times(seconds: Any) -> Any:
    return pd.to_datetime(np.asarray(seconds), unit="s", utc=True)


def _at(seconds: float) -> pd.Timestamp:
    return pd.Timestamp(seconds, unit="s", tz="UTC")


def _dated(axis: Axes, what: str) -> None:
    axis.set_ylabel(what, color=SOFT, fontsize=9)
    _dates(axis)


def _dates(axis: Axes) -> None:
    locator = mdates.AutoDateLocator(minticks=4, maxticks=9)  # type: ignore[no-untyped-call]
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(mdates.ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]


def _bare(axis: Axes) -> None:
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
