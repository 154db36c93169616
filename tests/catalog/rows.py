"""Rows and points for tests of the catalog."""

from __future__ import annotations

from typing import Any

from vmcellar.catalog.models import Run, Segment
from vmcellar.repository.points import DiskRecord, RestorePoint

START = 1_800_000_000.0
HOUR = 3600.0
MIB = 1 << 20


def run(name: str, **fields: Any) -> Run:
    """A run of `web`."""
    return Run(**{"id": name, "vm": "web", "started": START, "outcome": "done", **fields})


def segment(run_id: str, number: int = 0, **fields: Any) -> Segment:
    """A segment of a run's only disk."""
    figures = {f"bytes_{name}": 4 * MIB for name in ("read", "zero", "changed", "known", "new", "stored")}
    seconds = {f"{stage}_seconds": 0.5 for stage in ("export", "compress", "place", "verify")}
    given = {"run_id": run_id, "target": "vda", "number": number, "chunks_known": 3, "tier": "hot"}
    return Segment(**{**given, **figures, **seconds, **fields})


def point(vm: str, hour: int, **fields: Any) -> RestorePoint:
    """The point of an hour, of a VM with one disk."""
    disk = DiskRecord(
        "vda",
        1 << 30,
        "00" * 32,
        1,
        "qcow2",
        "image-1",
        bytes_read=8 * MIB,
        bytes_changed=8 * MIB,
        bytes_zero=MIB,
        bytes_known=3 * MIB,
        bytes_new=4 * MIB,
        bytes_stored=2 * MIB,
        chunks_known=3,
        segments=1,
        entropy=5.5,
        tier="hot",
    )
    values: dict[str, Any] = {
        "id": f"20270115T{hour:02}0000Z-{sum(vm.encode()):08x}",
        "vm": vm,
        "vm_uuid": "u",
        "time": START + hour * HOUR,
        "kind": "incremental" if hour else "full",
        "reason": "" if hour else "first backup",
        "parent": None,
        "consistency": "quiesced",
        "verified": True,
        "checkpoint": f"c{hour}",
        "checkpoint_xml": "",
        "disks": (disk,),
        "bytes_stored": disk.bytes_stored,
        "freeze_seconds": 0.2,
        "held_seconds": 3.0,
        "seconds": {"export": 2.0},
        "run_seconds": 5.0,
        "run_id": f"run-{vm}-{hour}",
    }
    return RestorePoint(**{**values, **fields})
