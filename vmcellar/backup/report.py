"""The report of one backup as Markdown, for the UI, for mails, for people."""

from __future__ import annotations

import time

from vmcellar.backup.model import DiskFigures, PointSummary

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size_text(count: float) -> str:
    """Bytes for people: 1536 is `1.5 KiB`."""
    for unit in _UNITS:
        if abs(count) < 1024 or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


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
    lines = [
        f"# {point.vm}: {point.kind} restore point `{point.id}`",
        "",
        f"- taken {point.time}, {_consistency(point)}, {'verified' if point.verified else '**NOT VERIFIED**'}",
        f"- {'because: ' + point.reason if point.reason else f'incremental to `{point.parent}`'}",
        f"- held the VM's backup job for {point.held_seconds:.1f} s; guest frozen for {point.freeze_seconds:.2f} s",
        f"- read {size_text(point.bytes_read)}, changed {size_text(point.bytes_changed)}, "
        f"stored {size_text(point.bytes_stored)} on the tier hot",
        "",
        *_disk_table(point.disks),
        "",
        "| stage | seconds of work |",
        "|---|---|",
        *(f"| {stage} | {seconds:.2f} |" for stage, seconds in point.seconds.items()),
        *_section("Not covered", point.uncovered),
        *_section("Warnings", point.warnings),
        *_section("Hooks", point.hooks),
    ]
    return "\n".join(lines) + "\n"


def _consistency(point: PointSummary) -> str:
    return "quiesced by the guest agent" if point.consistency == "quiesced" else "crash-consistent"


def _disk_table(disks: tuple[DiskFigures, ...]) -> list[str]:
    return [
        "| disk | size | read | zero | changed | known | new | stored | ratio | in full because |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {d.target} | {size_text(d.size)} | {size_text(d.bytes_read)} | {size_text(d.bytes_zero)} "
            f"| {size_text(d.bytes_changed)} | {size_text(d.bytes_known)} | {size_text(d.bytes_new)} "
            f"| {size_text(d.bytes_stored)} | {_ratio(d)} | {d.full_reason} |"
            for d in disks
        ),
    ]


def _ratio(disk: DiskFigures) -> str:
    """New bytes by what they took; a disk that stored nothing has none."""
    return f"{disk.bytes_new / disk.bytes_stored:.2f}" if disk.bytes_stored else ""


def _section(title: str, lines: tuple[str, ...]) -> list[str]:
    return ["", f"## {title}", "", *(f"- {line}" for line in lines)] if lines else []
