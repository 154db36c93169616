"""Where the analysis commands take their history from: the catalog, a Parquet file, or a made-up sample."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmcellar.cli.output import note
from vmcellar.errors import PermanentError, UsageError
from vmcellar.policy.localzone import local_zone

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pandas as pd

    from vmcellar.catalog.catalog import Catalog

HistoryOption = Annotated[
    Path | None,
    typer.Option("--history", metavar="FILE", help="A history that `catalog export` wrote, instead of the catalog."),
]
SampleOption = Annotated[
    int | None,
    typer.Option("--sample", metavar="SEED", min=0, help="A made-up history, to see what the command shows."),
]
WEEKS = 25
"""What forecasts look back on, and a week more: they load no older history."""
SAMPLE_VMS = 18
SAMPLE_DAYS = 120


@dataclass(frozen=True, slots=True)
class Source:
    """What the options of a command say about its history."""

    config: Path | None = None
    history: Path | None = None
    sample: int | None = None

    def __post_init__(self) -> None:
        if self.history is not None and self.sample is not None:
            raise UsageError("--history and --sample are two histories", hint="give one of them")

    @property
    def zone(self) -> tzinfo:
        """By which clock the guests of the history live: this host's; made-up ones know no summer time."""
        return local_zone() if self.sample is None else UTC

    @property
    def is_catalog(self) -> bool:
        """Whether the history is that of a repository."""
        return self.history is None and self.sample is None


def read_frame(ctx: typer.Context, source: Source, vm: str | None = None) -> tuple[pd.DataFrame, float | None]:
    """The good rows of the history's last weeks, of one VM or all, and now (None: the history's own last start).

    Rows that fail the quality suite are left out, and their number is said. UsageError for a file that is no history
    and for an unknown VM.
    """
    frame, now = _read(ctx, source)
    good, bad = _judged(frame, now)
    _tell(bad)
    if vm is not None:
        found = good[good["vm"] == vm]
        if found.empty:
            raise PermanentError(f"{vm} is not in this history", hint=f"it holds {_some(good)}")
        return found, now
    if good.empty:
        note("there is no history to go by; `vmcellar catalog rebuild` reads it back from the repository")
    return good, now


def read_parts(ctx: typer.Context, source: Source) -> Iterator[tuple[pd.DataFrame, pd.Timestamp]]:
    """The good rows of all of the history, some VMs after the others, and now, for a file or a sample its last start;
    as `read_frame`.
    """
    import pandas as pd

    now, parts = _all_of(ctx, source)
    every = []
    for part in parts:
        good, bad = _judged(part, now.timestamp())
        every += [bad] * bool(len(bad))
        if len(good):
            yield good, now
    if every:
        _tell(pd.concat(every))


def _all_of(ctx: typer.Context, source: Source) -> tuple[pd.Timestamp, Iterable[pd.DataFrame]]:
    import pandas as pd

    from vmcellar.analysis.exports import history_in_parts, last_start
    from vmcellar.analysis.history import in_parts

    if source.sample is not None:
        frame = _sample(source.sample)
        return frame["started"].max(), [frame]
    if source.history is not None:
        return last_start(source.history), history_in_parts(source.history)
    now = time.time()
    return pd.Timestamp(now, unit="s", tz="UTC"), in_parts(_catalog(ctx, source, now))


def _judged(frame: pd.DataFrame, now: float | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Good rows, and bad ones with their reasons, at `now` or the last start."""
    from vmcellar.analysis.quality import quarantine

    last = frame["started"].max().timestamp() if len(frame) else None
    return quarantine(frame, now if now is not None else last)


def _tell(bad: pd.DataFrame) -> None:
    if len(bad):
        note(f"{len(bad)} rows of the history were not used: {'; '.join(sorted(set(bad['reasons'])))}")


def _read(ctx: typer.Context, source: Source) -> tuple[pd.DataFrame, float | None]:
    from vmcellar.analysis.exports import read_history
    from vmcellar.analysis.history import recent

    if source.sample is not None:
        return _sample(source.sample), None
    if source.history is not None:
        return read_history(source.history, WEEKS), None
    now = time.time()
    return recent(_catalog(ctx, source, now), now), now


def _catalog(ctx: typer.Context, source: Source, now: float) -> Catalog:
    """The catalog, whose disks were judged by their segments."""
    from vmcellar.cli.commands.catalog import look_at_segments, open_catalog

    _, catalog = open_catalog(ctx, source.config)
    look_at_segments(catalog, now)
    return catalog


def _some(frame: pd.DataFrame, most: int = 5) -> str:
    names = sorted(str(name) for name in frame["vm"].unique())
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "no VM") + more


def _sample(seed: int) -> pd.DataFrame:
    from dataclasses import replace

    from vmcellar.analysis.sample import TUNING, generate

    note(f"a made-up history: {SAMPLE_VMS} VMs over {SAMPLE_DAYS} days, seed {seed}")
    settings = replace(TUNING, seed=seed, vms=SAMPLE_VMS, days=SAMPLE_DAYS, trouble_share=0.25)
    return generate(settings).frame
