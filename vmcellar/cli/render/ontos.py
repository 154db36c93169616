"""What a differential restore did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.text import Text

from vmcellar.cli.render.text import seconds_text, size_text
from vmcellar.restore.onto import OntoReport, OverwrittenDisk


def onto_json(report: OntoReport) -> dict[str, Any]:
    """The fields of `restore --onto --json`."""
    return asdict(report)


def onto_text(report: OntoReport) -> Group:
    """Per disk: bytes compared, written and zeroed."""
    lines = [Text(f"restored {report.vm}, point {report.point}, onto existing disks in {seconds_text(report.seconds)}")]
    for disk in report.disks:
        lines += _disk(disk)
    return Group(*lines, Text(f"  {size_text(report.read)} read from the repository"))


def _disk(disk: OverwrittenDisk) -> Iterator[Text]:
    figures = f"{size_text(disk.size)} compared, {size_text(disk.written)} written, {size_text(disk.zeroed)} zeroed"
    yield Text(f"  {disk.target} onto {disk.onto}: {figures}")
    if disk.went_on:
        yield Text("    it was left half by an earlier restore and is whole now", style="yellow")
    if disk.beyond:
        yield Text(f"    {size_text(disk.beyond)} behind the end of the disk were left as they were", style="yellow")
