"""Advice on storing that was followed, and the gain that really came of it.

`note` writes down what `storing.proposals` advises, with the figure that it should change. `storage_gains` measures the
same figure again once the advice is seen to be followed:

- compression: bytes stored of each new byte, by the VM's incremental runs;
- consolidation: reads that restoring the newest point of every VM takes;
- tier rule: what a GB costs a month, over all tiers as they stand.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd

from vmcellar.analysis.capacity import tiers_now
from vmcellar.analysis.gains import LEAST_RUNS
from vmcellar.analysis.storing import RECENT_DAYS, REPOSITORY, rule_text, rule_today
from vmcellar.catalog.models import StorageAdvice
from vmcellar.errors import IntegrityError
from vmcellar.policy.governing import governing_job
from vmcellar.upkeep.consolidate import consolidate

if TYPE_CHECKING:
    from vmcellar.analysis.storing import Proposal
    from vmcellar.catalog.catalog import Catalog
    from vmcellar.config.model import Config
    from vmcellar.repository.repository import Repository

DAY = 86400.0
GB = 1e9
MOST = 0.75
"""With so much of the predicted gain it came as predicted."""
OFF = 0.05
"""Where a figure was to stay as it is, by so much it may be larger."""
UNITS = {
    "compression": "stored of a new byte",
    "consolidation": "reads to restore all newest points",
    "tier rule": "a month for a GB",
}


@dataclass(frozen=True, slots=True)
class StorageGain:
    """One piece of advice, given at `time` (seconds since the epoch): the figure of then, what was predicted of it, and
    what `came`; None while it is not followed, or too early to tell. `damaged`: damage forbids to measure it.
    """

    about: str
    what: str
    time: float
    advised: str
    unit: str
    before: float
    predicted: float
    came: float | None
    verdict: str
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class Sight:
    """What figures are measured on: the repository, its configuration, the good rows of the history, at `now`."""

    repository: Repository
    config: Config
    frame: pd.DataFrame
    now: float

    def figure(self, about: str, vm: str, since: float) -> float | None:
        """The figure of a subject; of compression by runs from `since` on, None with fewer than `LEAST_RUNS`."""
        if about == "compression":
            return self._stored_share(vm, since)
        if about == "consolidation":
            return float(consolidate(self.repository, dry_run=True).reads_before)
        standing = tiers_now(self.repository, self.config, self.now)
        used = sum(tier.used for tier in standing)
        return sum(tier.cost_month for tier in standing) / used * GB if used else None

    def _stored_share(self, vm: str, since: float) -> float | None:
        rows = self.runs(vm, since)
        new = float(rows["bytes_new"].sum())
        return float(rows["bytes_stored"].sum()) / new if new and rows["run_id"].nunique() >= LEAST_RUNS else None

    def runs(self, vm: str, since: float) -> pd.DataFrame:
        """A VM's good incremental rows from a moment on."""
        rows, begin = self.frame, pd.Timestamp(since, unit="s", tz="UTC")
        return rows[(rows["vm"] == vm) & rows["ok"] & (rows["kind"] == "incremental") & (rows["started"] >= begin)]

    def is_followed(self, row: StorageAdvice, figure: float | None) -> bool:
        """Whether the configuration, or the repository, is as was advised."""
        if row.about == "tier rule":
            return rule_text(rule_today(self.config)) == row.advised
        if row.about == "consolidation":
            return figure is not None and figure <= (row.figure + row.predicted) / 2
        newest = next(iter(reversed(self.repository.points_of(row.vm))), None)
        job = governing_job(self.config.backups, row.vm, newest.job if newest else "")
        return job is not None and job.compression == row.advised


def note(catalog: Catalog, proposals: Sequence[Proposal], sight: Sight) -> int:
    """Write down the proposals that advise something and of which the figure is known; how many. The same advice on the
    same subject is not written twice.
    """
    newest = {(row.about, row.vm): row.advised for row in catalog.storage_advice()}
    rows = []
    for one in proposals:
        vm = "" if one.what == REPOSITORY else one.what
        if one.factor is None or newest.get((one.subject, vm)) == one.advised:
            continue
        figure = sight.figure(one.subject, vm, sight.now - RECENT_DAYS * DAY)
        if figure is not None:
            rows.append(
                StorageAdvice(
                    id=f"{one.subject}-{secrets.token_hex(8)}",
                    repository=catalog.repository,
                    about=one.subject,
                    vm=vm,
                    time=sight.now,
                    today=one.today,
                    advised=one.advised,
                    figure=figure,
                    predicted=figure * one.factor,
                )
            )
    catalog.add(rows)
    return len(rows)


def storage_gains(catalog: Catalog, sight: Sight) -> list[StorageGain]:
    """The newest advice on each subject and what came of it. What is seen to be followed for the first time is noted as
    followed from now on. Where damage forbids to measure a figure, the verdict says so.
    """
    newest = {(row.about, row.vm): row for row in catalog.storage_advice()}
    found, begun = [], []
    for _, row in sorted(newest.items()):
        try:
            whole = None if row.about == "compression" else sight.figure(row.about, row.vm, 0.0)
        except IntegrityError as error:
            found.append(replace(_of(row, None, f"cannot be measured: {error.message}"), damaged=True))
            continue
        followed = sight.is_followed(row, whole)
        if followed and row.followed is None:
            row.followed = sight.now
            begun.append(row)
        found.append(_gain(row, sight, whole, followed=followed))
    catalog.add(begun)
    return found


def _gain(row: StorageAdvice, sight: Sight, whole: float | None, *, followed: bool) -> StorageGain:
    came = None
    if not followed:
        verdict = "not followed"
    elif row.about == "compression":
        since = row.followed or sight.now
        came = sight.figure(row.about, row.vm, since)
        runs = sight.runs(row.vm, since)["run_id"].nunique()
        verdict = _verdict(row, came, f"too early: {runs} of {LEAST_RUNS} runs since it was seen to be followed")
    else:
        came = whole
        verdict = _verdict(row, came, "not known: nothing is stored")
    return _of(row, came, verdict)


def _of(row: StorageAdvice, came: float | None, verdict: str) -> StorageGain:
    what = row.vm or REPOSITORY
    return StorageGain(
        row.about, what, row.time, row.advised, UNITS[row.about], row.figure, row.predicted, came, verdict
    )


def _verdict(row: StorageAdvice, came: float | None, unknown: str) -> str:
    """How what came compares with what was predicted; advice that saves CPU time alone has no gain in its figure."""
    if came is None:
        return unknown
    predicted, real = row.figure - row.predicted, row.figure - came
    if predicted <= 0:
        return "as predicted" if came <= (1 + OFF) * row.predicted else "more is stored than predicted: take it back"
    if real >= MOST * predicted:
        return "as predicted"
    return f"{real / predicted:.0%} of the predicted gain" if real > 0 else "no gain came: take it back"
