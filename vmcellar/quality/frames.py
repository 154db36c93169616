"""Evidence as tables: one row per point, disk, file system or drill; what the suites of `suites/` are about."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vmcellar.repository.evidence import Evidence
from vmcellar.repository.points import STAMP

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]

NOTHING = float("nan")
"""For a limit that the policy does not set, and for what nobody can know: no expectation is about it."""
SKEW = 300.0
"""Seconds by which the clocks of hosts may differ."""


def points(record: Evidence) -> list[Row]:
    """The row of a verification; none for a drill."""
    if record.kind != "verification":
        return []
    readable = not _missed(record, "record")
    made = datetime.strptime(record.point[:STAMP], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    return [
        {
            "point": record.point,
            "vm": record.vm,
            "readable": readable,
            "disks": len(record.disks) if readable else NOTHING,
            "missing": len(record.missing),
            "damaged": record.damaged,
            "stale": int(_missed(record, "source")),
            "ahead": made - record.time - SKEW,
            "rpo": _number(record.rpo),
            "rpo_limit": _number(record.rpo_limit),
            "rpo_over": _over(record.rpo, record.rpo_limit),
        }
    ]


def disks(record: Evidence) -> list[Row]:
    """A row per disk of a verification."""
    if record.kind != "verification":
        return []
    names = ("target", "size", "size_found", "root", "root_found", "compared", "differing", "lost")
    own = {"point": record.point, "vm": record.vm}
    return [{**own, **{name: getattr(disk, name) for name in names}} for disk in record.disks]


def file_systems(record: Evidence) -> list[Row]:
    """A row per file system that a verification found."""
    own = {"point": record.point, "vm": record.vm}
    return [
        {**own, "target": disk.target, "place": each.place, "type": each.type, "state": each.state}
        for disk in record.disks
        for each in disk.file_systems
    ]


def drills(record: Evidence) -> list[Row]:
    """The row of a drill; none for a verification."""
    if record.kind != "drill":
        return []
    return [
        {
            "point": record.point,
            "vm": record.vm,
            "restored": not _missed(record, "restore"),
            "alive": record.alive or "nothing",
            "agent_missed": _missed(record, "agent"),
            "clock_wrong": _missed(record, "clock"),
            "files_wrong": _count(record, "file "),
            "counts_wrong": _count(record, "count "),
            "commands_failed": _count(record, "command "),
            "ports_closed": _count(record, "port "),
            "rto": _number(record.rto),
            "rto_limit": _number(record.rto_limit),
            "rto_over": _over(record.rto, record.rto_limit),
        }
    ]


TABLES: dict[str, Callable[[Evidence], list[Row]]] = {
    "points": points,
    "disks": disks,
    "file_systems": file_systems,
    "drills": drills,
}
"""The suites by name, and where their rows come from."""


def frame(name: str, records: Iterable[Evidence]) -> pd.DataFrame:
    """The table of a suite over some evidence; empty when none of it is about that."""
    import pandas as pd  # noqa: PLC0415  (2 s)

    return pd.DataFrame([row for record in records for row in TABLES[name](record)])


def _missed(record: Evidence, name: str) -> bool:
    return any(check.name == name and not check.ok for check in record.checks)


def _count(record: Evidence, prefix: str) -> int:
    return sum(check.name.startswith(prefix) and not check.ok for check in record.checks)


def _number(value: float | None) -> float:
    return NOTHING if value is None else value


def _over(value: float | None, limit: float | None) -> float:
    """By how much a limit is passed, below zero inside of it; not a number where one of both is not known."""
    return NOTHING if limit is None or value is None else value - limit
