"""A small backup without a VM: a disk as a bytearray, its changes, and what it takes to commit them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np

from vmcellar.repository.diskmap import DiskMap
from vmcellar.repository.layout import ROW
from vmcellar.repository.nodes import Rows
from vmcellar.repository.packs import SealedPack
from vmcellar.repository.points import DiskRecord, RestorePoint, new_point_id
from vmcellar.repository.repository import Repository

Change = tuple[int, bytes | int]
"""(offset, bytes written) or (offset, count of zero bytes)."""


def rows_of(repository: Repository, changes: Sequence[Change]) -> Rows:
    rows = np.zeros(len(changes), ROW)
    for row, (offset, content) in zip(rows, changes, strict=True):
        row["offset"] = offset
        row["length"] = content if isinstance(content, int) else len(content)
        if not isinstance(content, int):
            row["chunk"] = np.frombuffer(repository.keyring.chunk_id(content), np.uint8)
    return rows


def store(repository: Repository, changes: Sequence[Change]) -> list[SealedPack]:
    """Pack what is new and place it."""
    writer = repository.pack_writer(repository.tier.staging_dir(), "zstd:1")
    for _, content in changes:
        if not isinstance(content, int) and not repository.index.known([repository.keyring.chunk_id(content)]):
            writer.append(repository.keyring.chunk_id(content), content)
    packs = writer.finish()
    for pack in packs:
        repository.tier.adopt(pack.path, pack.key)
    return packs


def point_of(vm: str, disk: DiskRecord, time: float = 1_800_000_000.5, parent: str | None = None) -> RestorePoint:
    return RestorePoint(
        id=new_point_id(time),
        vm=vm,
        vm_uuid="6b1f0d5e-0000-4000-8000-000000000001",
        time=time,
        kind="incremental" if parent else "full",
        reason="" if parent else "first backup",
        parent=parent,
        consistency="crash",
        verified=True,
        checkpoint="vmcellar-1",
        checkpoint_xml="<domaincheckpoint/>",
        disks=(disk,),
    )


def back_up(
    repository: Repository,
    pool: Executor,
    changes: Sequence[Change],
    size: int,
    parent: RestorePoint | None = None,
    vm: str = "web",
    time: float = 1_800_000_000.5,
) -> RestorePoint:
    """Commit a point of one disk: the parent's with `changes`, a minute later; the first one at `time`."""
    packs = store(repository, changes)
    before = repository.map(parent.disks[0]) if parent else repository.empty_map(size)
    root, nodes = before.replace(rows_of(repository, changes), size)
    record = DiskRecord("vda", size, root.hex(), DiskMap(repository, size).level, "qcow2", "image-1")
    time = parent.time + 60 if parent else time
    point = point_of(vm, record, time, parent.id if parent else None)
    artifacts = {"domain.xml": b"<domain/>", "kernel": bytes(range(256)) * 6000}
    return repository.commit({pack.id: pack.rows for pack in packs}, nodes, artifacts, point, pool)


def read_disk(repository: Repository, point: RestorePoint) -> bytes:
    """The whole first disk, from the repository alone."""
    return read_map(repository, point.disks[0])


def read_map(repository: Repository, disk: DiskRecord) -> bytes:
    """The whole disk, from the repository alone."""
    image = bytearray(disk.size)
    for rows in repository.map(disk).rows():
        plains = repository.read_objects([row["chunk"].tobytes() for row in rows])
        for row in rows:
            start, offset, length = int(row["chunk_offset"]), int(row["offset"]), int(row["length"])
            image[offset : offset + length] = plains[row["chunk"].tobytes()][start : start + length]
    return bytes(image)


def staged(repository: Repository) -> list[Path]:
    return list(repository.tier.staging_dir().iterdir())
