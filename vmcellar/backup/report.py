"""The report of one backup as Markdown, for the UI, for mails, for people; sizes and times as words."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmcellar.backup.model import DiskFigures, PointSummary

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_DISK_COLUMNS = ("disk", "size", "read", "zero", "known", "new", "stored", "ratio", "changed")
_DISK_HELP = (
    "Of what was *read*, part was *zero*, part *known*: in the repository already. The rest is *new*, and took what is "
    "*stored*, the *ratio* of both being what compression gave. *Changed* is what the point records as changed since "
    "the one before it, of a full one all."
)


def size_text(size: float) -> str:
    """Bytes with a binary unit and three figures at least: `1.5 GiB`."""
    for unit in _UNITS:
        if abs(size) < 1024 or unit == _UNITS[-1]:
            break
        size /= 1024
    if unit == "B":
        return f"{size:.0f} B"
    return f"{size:.3g} {unit}" if abs(size) < 1000 else f"{size:.0f} {unit}"


def moment_text(moment: str) -> str:
    """An RFC 3339 time in UTC, to the second: `2026-01-31 02:00:07 UTC`."""
    return f"{datetime.fromisoformat(moment).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def span_text(seconds: float) -> str:
    """Seconds as the largest two units that say something: `1 d 4 h`, `12 min`; `unknown` for NaN."""
    if math.isnan(seconds):
        return "unknown"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    large, small = (f"{hours} h", f"{rest} min") if hours < 48 else (f"{hours // 24} d", f"{hours % 24} h")
    return large if small.startswith("0 ") else f"{large} {small}"


def eta(done: int, total: int, started: float) -> str:
    """How far, how fast, how long still; `started` is of the monotonic clock."""
    seconds = max(time.monotonic() - started, 1e-3)
    rate = done / seconds
    left = f"{(total - done) / rate:.0f} s left" if rate > 0 and done < total else "reading is done"
    return f"{size_text(done)} of {size_text(total)} read at {size_text(rate)}/s, {left}"


def markdown_report(point: PointSummary) -> str:
    """One page: what kind of point, what was read and stored of each disk, how long each stage took, what to look
    at.
    """
    verified = "read back from storage and **verified**" if point.verified else "**NOT VERIFIED**"
    lines = [
        f"# {point.vm}: {point.kind} restore point `{point.id}`",
        "",
        f"- taken {moment_text(point.time)}, {verified}",
        f"- {_consistency(point)}",
        f"- {_why(point)}",
        f"- held the VM's backup job for {point.held_seconds:.1f} s",
        f"- read {size_text(point.bytes_read)}, changed {size_text(point.bytes_changed)}, "
        f"stored {size_text(point.bytes_stored)} on the tier hot",
        *_section("Not covered", point.uncovered),
        *_section("Warnings", point.warnings),
        "",
        "## Disks",
        "",
        *_disk_table(point),
        "",
        _DISK_HELP,
        "",
        "## Time",
        "",
        "| stage | seconds of work |",
        "|---|---|",
        *(f"| {stage} | {seconds:.2f} |" for stage, seconds in point.seconds.items()),
        "",
        "Stages overlap: they work on segments of disks, some at once.",
        *_section("Hooks", point.hooks),
    ]
    return "\n".join(lines) + "\n"


def _consistency(point: PointSummary) -> str:
    if point.consistency == "quiesced":
        return f"quiesced: the guest agent froze the file systems, for {point.freeze_seconds:.2f} s"
    return "crash-consistent: as after a power cut, as no guest agent froze the file systems"


def _why(point: PointSummary) -> str:
    return f"read in full, because: {point.reason}" if point.reason else f"incremental to `{point.parent}`"


def _disk_table(point: PointSummary) -> list[str]:
    """Why a disk was read in full is told where it is not what holds for all of the point."""
    reasons = [disk.full_reason for disk in point.disks if disk.full_reason != point.reason]
    columns = [*_DISK_COLUMNS, *(["in full because"] if any(reasons) else [])]
    rows = [[*_figures(disk), disk.full_reason] for disk in point.disks]
    return [_row(columns), _row(["---"] * len(columns)), *(_row(row[: len(columns)]) for row in rows)]


def _figures(disk: DiskFigures) -> list[str]:
    """In the order of the columns. New bytes by what they took are the ratio; a disk that stored nothing has none."""
    ratio = f"{disk.bytes_new / disk.bytes_stored:.2f}" if disk.bytes_stored else ""
    sizes = (disk.size, disk.bytes_read, disk.bytes_zero, disk.bytes_known, disk.bytes_new, disk.bytes_stored)
    return [disk.target, *map(size_text, sizes), ratio, size_text(disk.bytes_changed)]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _section(title: str, lines: tuple[str, ...]) -> list[str]:
    return ["", f"## {title}", "", *(f"- {line}" for line in lines)] if lines else []
