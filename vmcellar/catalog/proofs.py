"""Evidence about points as rows, written when a proof or a drill ends."""

from __future__ import annotations

from vmcellar.catalog.models import Evidence as Row
from vmcellar.repository import layout
from vmcellar.repository.evidence import Evidence, EvidenceName


def row_of(record: Evidence, name: EvidenceName) -> Row:
    """The row of one record; its id is the object's name."""
    worst = [f"{check.name}: expected {check.expected}, found {check.found}" for check in record.failed]
    return Row(
        id=name.key.removeprefix(layout.EVIDENCE),
        repository=record.repository,
        vm=record.vm,
        point_id=record.point,
        time=record.time,
        kind=record.kind,
        ok=record.verdict == "passed",
        seconds=sum(record.seconds.values()),
        rto_seconds=record.rto,
        detail="; ".join([*worst, *record.expectations]),
    )
