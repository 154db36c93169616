"""Which restore points a retention keeps: pure functions over (id, time), in a time zone.

Generations are those of Proxmox Backup Server, to the letter ("Maintenance Tasks", section "Pruning"): the rules are
applied in the order last, hourly, daily, weekly, monthly, yearly; each keeps the newest point of its periods, newest
period first, until it has kept its number of periods; a period in which an earlier rule kept a point is passed over and
does not count; periods without points do not count; weeks are ISO weeks. Beyond that the newest point always stays.

A point of a later time than now was made by a clock that was wrong: it stays and takes no place, as else each new
point would lose its own to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from vmcellar.config.jobs import KeepByAge

Rules = KeepByAge | int
"""Generations, or a time in seconds for which every point is kept."""

CLOCKS_APART = 300.0
"""Seconds by which the clocks of hosts may differ."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One point, as far as retention looks at it: `time` in seconds since the epoch."""

    id: str
    time: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a point stays, and why, in a few words."""

    keep: bool
    why: str


_PERIODS: tuple[tuple[str, Callable[[datetime], object]], ...] = (
    ("hourly", lambda when: (when.toordinal(), when.hour, when.utcoffset())),
    ("daily", lambda when: when.toordinal()),
    ("weekly", lambda when: when.isocalendar()[:2]),
    ("monthly", lambda when: (when.year, when.month)),
    ("yearly", lambda when: when.year),
)


def decide(
    moments: Iterable[Moment], rules: Rules | None, *, now: float, zone: tzinfo = UTC, pinned: Collection[str] = ()
) -> dict[str, Verdict]:
    """A verdict for every point of one VM, newest first.

    `zone` says when a day begins, `now` (seconds since the epoch) what a time counts from. Pinned points, and those of
    a later time than now, stay and take no place of a rule. Without rules, or with rules that are all zero, everything
    stays.
    """
    ordered = sorted(moments, key=lambda moment: (moment.time, moment.id), reverse=True)
    early = [moment for moment in ordered if moment.time > now + CLOCKS_APART]
    verdicts = {moment.id: Verdict(True, "of a later time than this host's clock has") for moment in early}
    verdicts.update({moment.id: Verdict(True, "pinned") for moment in ordered if moment.id in pinned})
    free = [moment for moment in ordered if moment.id not in verdicts]
    if rules is None or (isinstance(rules, KeepByAge) and not any(rules.model_dump().values())):
        verdicts.update({moment.id: Verdict(True, "no retention") for moment in free})
    elif isinstance(rules, KeepByAge):
        verdicts.update(_generations(free, rules, zone))
    else:
        verdicts.update(_by_time(free, rules, now))
    newest = next((moment for moment in ordered if moment not in early), None)
    if newest is not None and not verdicts[newest.id].keep:
        verdicts[newest.id] = Verdict(True, "the newest")
    return {moment.id: verdicts[moment.id] for moment in ordered}


def _by_time(moments: list[Moment], seconds: int, now: float) -> dict[str, Verdict]:
    return {
        moment.id: Verdict(True, "young enough") if moment.time > now - seconds else Verdict(False, "too old")
        for moment in moments
    }


def _generations(moments: list[Moment], rules: KeepByAge, zone: tzinfo) -> dict[str, Verdict]:
    """`moments` newest first."""
    marks: dict[str, Verdict] = {}
    whens = {moment.id: datetime.fromtimestamp(moment.time, zone) for moment in moments}
    for number, moment in enumerate(moments[: rules.last], 1):
        marks[moment.id] = Verdict(True, f"last {number}")
    for name, period_of in _PERIODS:
        periods = {moment.id: period_of(whens[moment.id]) for moment in moments}
        _mark(marks, name, int(getattr(rules, name)), periods)
    dropped = Verdict(False, "no rule keeps it")
    return {moment.id: marks.get(moment.id, dropped) for moment in moments}


def _mark(marks: dict[str, Verdict], name: str, count: int, periods: dict[str, object]) -> None:
    """Apply one rule to what no earlier one has decided; `periods` of all points, newest first."""
    covered = {periods[point] for point, mark in marks.items() if mark.keep}
    taken: set[object] = set()
    for point, period in periods.items():
        if point in marks or period in covered:
            continue
        if period in taken:
            marks[point] = Verdict(False, f"not the newest of its {name} period")
        elif len(taken) >= count:
            return
        else:
            taken.add(period)
            marks[point] = Verdict(True, f"{name} {len(taken)}")
