"""Progress on a terminal: one bar per stage with rate and time left; silence where stderr is no terminal.

Thread behaviour: the sink may be called from any number of threads.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmcellar.progress import ProgressSink, no_progress

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@contextmanager
def progress_bars(totals: dict[str, int] | None = None) -> Iterator[ProgressSink]:
    """A sink that draws while the block runs. `totals`: bytes per stage where they are known beforehand."""
    if not sys.stderr.isatty():
        yield no_progress
        return
    with _progress() as progress:
        yield _Bars(progress, totals or {}).add


@contextmanager
def progress_counts() -> Iterator[ProgressSink]:
    """As `progress_bars`, for stages that count things (points, packs) instead of bytes."""
    if not sys.stderr.isatty():
        yield no_progress
        return
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    from vmcellar.cli.output import error_console

    columns = (TextColumn("{task.description:<9}"), TextColumn("{task.completed:.0f}"), TimeElapsedColumn())
    with Progress(*columns, console=error_console()) as progress:
        yield _Bars(progress, {}).add


def _progress() -> Progress:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from vmcellar.cli.output import error_console

    return Progress(
        TextColumn("{task.description:<9}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=error_console(),
    )


class _Bars:
    """A bar per stage, made when the stage first reports."""

    def __init__(self, progress: Progress, totals: dict[str, int]) -> None:
        self._progress = progress
        self._totals = totals
        self._bars: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def add(self, stage: str, count: int) -> None:
        with self._lock:
            bar = self._bars.get(stage)
            if bar is None:
                bar = self._bars[stage] = self._progress.add_task(stage, total=self._totals.get(stage))
        self._progress.advance(bar, count)
