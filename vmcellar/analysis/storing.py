"""Advice on how data is stored: compression level, chunk size, consolidation, tier rules, each with the gain it would
bring; and `no gain` where there is none.

Compression and chunk size are measured on a sample of the VM's own newest point, which is read and decoded for it. What
a day brings is that of the last four weeks of the history. Nothing is changed here.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from vmcellar.analysis.whatif import Past, Scenario, bill_of, past_of
from vmcellar.backup.report import size_text
from vmcellar.errors import IntegrityError, VmcellarError
from vmcellar.policy.governing import governing_job
from vmcellar.repository.codec import Compression
from vmcellar.repository.layout import CHUNK_MAX, GRID
from vmcellar.upkeep.consolidate import consolidate

if TYPE_CHECKING:
    from vmcellar.config.model import Config
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository

DAY = 86400.0
RECENT_DAYS = 28.0
STRETCHES, TOGETHER = 8, 4
"""So many stretches of so many chunks that follow each other on a disk are read: up to 32 MiB per VM."""
CHUNKS_MOST = 1 << 20
LEVELS = ("none", "zstd:auto", "zstd:1", "zstd:3", "zstd:6", "zstd:9", "zstd:12")
WORTH = 0.05
"""A gain below this share is no gain."""
CPU_TIMES = 4.0
"""The most CPU time that another level may take, by that of today's."""
INCOMPRESSIBLE = 1.03
SEEK = 0.01
"""Seconds that a read in another place takes, for what consolidation gains."""
AGES = (7, 14, 30, 60, 90)
REPOSITORY = "the repository"
"""What a proposal is about that is not about one VM."""

Clock = Callable[[], float]
Rule = tuple[tuple[str, float], ...]
"""Tiers with the age in days from which on bytes lie there."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What is so `today`, what is `advised` (empty: it stays), and the `gain` in words, with how it was found.

    `factor` is what the subject's figure (see `followed.py`) would be multiplied by; None where nothing is advised.
    """

    subject: str
    what: str
    today: str
    advised: str
    gain: str
    factor: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """A level on the sample: plain bytes by stored bytes, and CPU seconds per plain byte."""

    level: str
    ratio: float
    cpu: float


def proposals(
    repository: Repository, config: Config, frame: pd.DataFrame, now: float, clock: Clock = time.thread_time
) -> list[Proposal]:
    """All advice for the VMs of the history that have a verified point, and for the repository. `frame` holds good
    rows, `now` is in seconds since the epoch, `clock` tells CPU seconds.

    A VM whose chunks cannot be read here (archived, no key) is named, with why.
    """
    found = []
    for vm in sorted(str(name) for name in frame["vm"].unique()):
        points = [point for point in repository.points_of(vm) if point.verified]
        if points:
            found += _of_vm(repository, config, points[-1], _new_a_day(frame[frame["vm"] == vm], now), clock)
    found.append(_consolidation(repository))
    found.append(_tier_rule(repository, config, frame, now))
    return found


def _of_vm(repository: Repository, config: Config, point: RestorePoint, per_day: float, clock: Clock) -> list[Proposal]:
    job = governing_job(config.backups, point.vm, point.job)
    today = job.compression if job else "zstd:auto"
    try:
        stretches = sample_of(repository, point)
    except IntegrityError:
        raise
    except VmcellarError as error:
        return [Proposal("compression", point.vm, today, "", f"cannot be measured: {error.message}")]
    if not stretches:
        return [Proposal("compression", point.vm, today, "", "no gain: its newest point holds no data")]
    levels = [
        measure(level, [chunk for part in stretches for chunk in part], clock)
        for level in dict.fromkeys([*LEVELS, today])
    ]
    return [compression(point.vm, today, levels, per_day), chunk_size(point.vm, stretches, today)]


def sample_of(repository: Repository, point: RestorePoint) -> list[list[bytes]]:
    """Stretches of chunks from all over the point's disks (of the first `CHUNKS_MOST`), the same ones at each call.

    Raises what the tier raises.
    """
    ids: dict[bytes, None] = {}
    for disk in point.disks:
        for rows in repository.map(disk).rows():
            held = rows["chunk"][rows["chunk"].any(axis=1)]
            ids.update(dict.fromkeys(bytes(chunk) for chunk in held))
            if len(ids) >= CHUNKS_MOST:
                break
    every = list(ids)
    starts = range(0, len(every), TOGETHER)
    chosen = sorted(random.Random(point.id).sample(starts, min(STRETCHES, len(starts))))  # noqa: S311  (a sample)
    found = []
    for start in chosen:
        part = every[start : start + TOGETHER]
        read = repository.read_objects(part)
        found.append([read[chunk] for chunk in part])
    return found


def measure(level: str, chunks: Sequence[bytes], clock: Clock = time.thread_time) -> Measured:
    """One level on some chunks, each by itself, as they are stored."""
    form = Compression.parse(level)
    begun = clock()
    stored = sum(len(form.encode(chunk)[1]) for chunk in chunks)
    spent, plain = clock() - begun, sum(map(len, chunks))
    return Measured(level, plain / stored, spent / plain)


def compression(vm: str, today: str, levels: Sequence[Measured], per_day: float) -> Proposal:
    """The level that stores least for at most `CPU_TIMES` the CPU time; `none` where nothing helps. `per_day` is bytes
    that are new on a day, before compression.
    """
    by_name = {one.level: one for one in levels}
    now = by_name[today]
    best = max(levels, key=lambda one: one.ratio)
    if best.ratio < INCOMPRESSIBLE:
        if today == "none":
            return Proposal("compression", vm, today, "", "no gain: its data cannot be compressed")
        saved = (now.cpu - by_name["none"].cpu) * per_day
        gain = f"{saved:.1f} CPU s less a day; its data cannot be compressed ({best.ratio:.2f} at best)"
        useless = now.ratio < INCOMPRESSIBLE
        return Proposal("compression", vm, today, "none" if useless else "", gain, now.ratio if useless else None)
    may = [one for one in levels if one.cpu <= CPU_TIMES * max(now.cpu, by_name["zstd:auto"].cpu)]
    better = max(may, key=lambda one: (one.ratio, -one.cpu), default=now)
    saved_share = 1 - now.ratio / better.ratio
    if saved_share < WORTH:
        least = 1 - now.ratio / best.ratio
        gain = f"no gain: {best.level} would store {max(least, 0):.0%} less for {_times(best, now)} the CPU time"
        return Proposal("compression", vm, today, "", gain)
    saved = per_day / now.ratio * saved_share
    gain = f"{size_text(round(saved))} less stored a day ({saved_share:.0%}) for {_times(better, now)} the CPU time"
    return Proposal("compression", vm, today, better.level, gain, now.ratio / better.ratio)


def chunk_size(vm: str, stretches: Sequence[Sequence[bytes]], level: str) -> Proposal:
    """What chunks of another size would do; the format fixes them, so this only tells what is given away."""
    form = Compression.parse(level)
    apart = sum(len(form.encode(chunk)[1]) for part in stretches for chunk in part)
    joined = sum(len(form.encode(b"".join(part))[1]) for part in stretches)
    pieces = [chunk[at : at + GRID] for part in stretches for chunk in part for at in range(0, len(chunk), GRID)]
    again = 1 - len(set(pieces)) / len(pieces)
    today = f"{size_text(GRID)} to {size_text(CHUNK_MAX)}"
    text = (
        f"no gain: the format fixes it; {TOGETHER} chunks as one would store {1 - joined / apart:.0%} less, "
        f"{again:.0%} of the sample's {size_text(GRID)} pieces lie in it twice"
    )
    return Proposal("chunk size", vm, today, "", text)


def _consolidation(repository: Repository) -> Proposal:
    report = consolidate(repository, dry_run=True)
    today = f"{report.packs} packs, {report.reads_before} reads to restore every newest point"
    if not report.old:
        return Proposal("consolidation", REPOSITORY, today, "", "no gain: restores read in sequence as it is")
    saved = report.reads_before - report.reads_after
    gain = (
        f"{saved} reads less (about {saved * SEEK:.1f} s on a disk that seeks) and {len(report.old)} packs in "
        f"{report.new_packs}; {size_text(report.live)} are rewritten for it"
    )
    factor = report.reads_after / max(report.reads_before, 1)
    return Proposal("consolidation", REPOSITORY, today, "vmcellar consolidate", gain, factor)


def _tier_rule(repository: Repository, config: Config, frame: pd.DataFrame, now: float) -> Proposal:
    """Which ages would cost least in a month like the last one, points being kept for as long as they are now."""
    today, what = rule_today(config), REPOSITORY
    if frame.empty:
        return Proposal("tier rule", what, rule_text(today), "", "not known: there is no history")
    keep = kept_days(repository, now)
    bills = _bills(config, past_of(frame, pd.Timestamp(now, unit="s", tz="UTC")), keep)
    if bills is None:
        return Proposal("tier rule", what, rule_text(today), "", "no gain: it takes two tiers with a price each")
    best = min(bills, key=lambda rule: bills[rule])
    saved = bills[today] - bills[best]
    if saved <= WORTH * bills[today]:
        return Proposal("tier rule", what, rule_text(today), "", f"no gain: {bills[today]:.2f} a month is the least")
    gain = (
        f"{saved:.2f} of {bills[today]:.2f} less a month, if points are kept for {keep:.0f} days as now; "
        "thaws not counted"
    )
    factor = bills[best] / bills[today]
    return Proposal("tier rule", what, rule_text(today), rule_text(best), gain, factor)


def _bills(config: Config, past: Past, keep: float) -> dict[Rule, float] | None:
    """What the last month would have cost by today's rule and the usual ones; None where prices do not tell."""
    tables = {name: prices for name, prices in config.price_tables().items() if name == "hot" or prices.gb_month}
    today = rule_today(config)
    priced = all(name in tables for name, _ in today)
    if len(tables) < 2 or not priced or not any(prices.gb_month for prices in tables.values()):
        return None
    return {
        rule: bill_of(past, Scenario("", keep, rule), tables).total
        for rule in dict.fromkeys([today, *_rules(list(tables))])
    }


def cheapest_rule(config: Config, past: Past, keep: float) -> Rule | None:
    """The placement that would have cost least in the last month, points being kept for `keep` days; None where it
    takes two tiers with a price each to tell.
    """
    bills = _bills(config, past, keep)
    return min(bills, key=lambda rule: bills[rule]) if bills else None


def kept_days(repository: Repository, now: float) -> float:
    """How long points are kept, by the oldest that is there; a day at least."""
    return max((now - min((point.time for point in repository.readable_points()), default=now)) / DAY, 1.0)


def rule_today(config: Config) -> Rule:
    """The placement as ages in days from which on bytes lie on a tier."""
    begins, rule = 0.0, []
    for name, until in config.placement.limits() if config.placement else [("hot", "rest")]:
        rule.append((name, begins))
        begins = float(until) / DAY if isinstance(until, int) else begins
    return tuple(rule)


def _rules(tiers: Sequence[str]) -> list[Rule]:
    """Hot alone, and hot followed by one or two of the others at usual ages."""
    found: list[Rule] = [(("hot", 0.0),)]
    others = [name for name in ("warm", "cold") if name in tiers]
    found += [(("hot", 0.0), (name, float(age))) for name in others for age in AGES]
    if len(others) == 2:
        pairs = [(a, b) for a in AGES for b in AGES if a < b]
        found += [(("hot", 0.0), ("warm", float(a)), ("cold", float(b))) for a, b in pairs]
    return found


def rule_text(rule: Rule) -> str:
    return ", ".join(name if not age else f"{name} from {age:g} d" for name, age in rule)


def _times(one: Measured, by: Measured) -> str:
    return f"{one.cpu / by.cpu:.1f} times" if by.cpu > 0 else "as much as"


def _new_a_day(rows: pd.DataFrame, now: float) -> float:
    """Bytes that incrementals found new on a day, before compression, in the last weeks or what there is of them."""
    since = pd.Timestamp(now - RECENT_DAYS * DAY, unit="s", tz="UTC")
    recent = rows[rows["ok"] & (rows["kind"] == "incremental") & (rows["started"] >= since)]
    if recent.empty:
        return 0.0
    days = max((now - recent["started"].min().timestamp()) / DAY, 1.0)
    return float(recent["bytes_new"].sum() / days)
