"""Real repositories with points of random disks, made through their own interface, and the model of each disk."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vmcellar.config.tiers import TierSettings
from vmcellar.repository import nodes
from vmcellar.repository.layout import CHUNK_MAX, GRID
from vmcellar.repository.nodes import Rows
from vmcellar.repository.pack_format import Table
from vmcellar.repository.packs import PackWriter
from vmcellar.repository.points import DiskRecord, RestorePoint, new_point_id
from vmcellar.repository.repository import Repository

ARTIFACTS = {"domain.xml": b"<domain><name>vm</name></domain>", "nvram": bytes(range(256)) * 512}


@dataclass(frozen=True, slots=True)
class Key:
    """The passphrase of the tests."""

    def read(self) -> bytes:
        return b"correct horse battery staple"


@dataclass(frozen=True, slots=True)
class Settings:
    """What Repository.open asks of a configuration."""

    state: Path
    hot: Path
    key: Key = field(default_factory=Key)

    def hot_tier(self) -> TierSettings:
        return TierSettings(storage=str(self.hot))

    def other_tiers(self) -> Mapping[str, TierSettings]:
        return {}


@dataclass(slots=True)
class World:
    """A repository and its points; `models` holds every disk's bytes by point id and target."""

    settings: Settings
    repository: Repository
    pool: ThreadPoolExecutor
    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    clock: float = 1.75e9
    last: RestorePoint | None = None

    def add(
        self, disks: Mapping[str, bytes], artifacts: Mapping[str, bytes] = ARTIFACTS, pack_bytes: int = 4 << 20
    ) -> RestorePoint:
        """Commit a point of these disks: a full for new targets, else what differs on the 64 KiB grid."""
        staging = self.repository.tier.staging_dir()
        writer = PackWriter(self.repository.keyring, staging, pack_bytes=pack_bytes)
        records, new_nodes = [], {}
        seen: set[bytes] = set()
        for target, data in disks.items():
            before = self.models[self.last.id].get(target) if self.last else None
            changes = self._store(writer, data, before, seen)
            old = self.repository.map(self.last.disk(target)) if self.last and before is not None else None
            root, added = (old or self.repository.empty_map(len(data))).replace(changes, len(data))
            new_nodes.update(added)
            level = self.repository.empty_map(len(data)).level
            records.append(DiskRecord(target, len(data), root.hex(), level, "qcow2", f"id-{target}"))
        packs: dict[bytes, Table] = {}
        for sealed in writer.finish():
            self.repository.tier.adopt(sealed.path, sealed.key)
            packs[sealed.id] = sealed.rows
        self.clock += 60
        self.last = self.repository.commit(packs, new_nodes, artifacts, self._point(tuple(records)), self.pool)
        self.models[self.last.id] = dict(disks)
        return self.last

    def add_grown(self, point: RestorePoint, size: int) -> RestorePoint:
        """The same single disk, grown to `size` with zeroes; no model, it may be far larger than memory."""
        disk = point.disks[0]
        root, added = self.repository.map(disk).replace(nodes.no_rows(), size)
        level = self.repository.empty_map(size).level
        record = DiskRecord(disk.target, size, root.hex(), level, "qcow2", disk.identity)
        self.clock += 60
        return self.repository.commit({}, added, {}, self._point((record,)), self.pool)

    def _store(self, writer: PackWriter, data: bytes, before: bytes | None, seen: set[bytes]) -> Rows:
        """Append the chunks that differ from `before`; the rows that name them (zero id: zero now)."""
        runs = list(_runs(data, before))
        rows = nodes.no_rows(len(runs))
        for row, (offset, end) in zip(rows, runs, strict=True):
            piece = data[offset:end]
            row["offset"], row["length"] = offset, end - offset
            if piece.strip(b"\0"):
                chunk = self.repository.keyring.chunk_id(piece)
                row["chunk"] = np.frombuffer(chunk, np.uint8)
                if chunk not in seen and not self.repository.index.known([chunk]):
                    writer.append(chunk, piece)
                seen.add(chunk)
        return rows

    def _point(self, records: tuple[DiskRecord, ...]) -> RestorePoint:
        return RestorePoint(
            id=new_point_id(self.clock),
            vm="vm",
            vm_uuid="0" * 8,
            time=self.clock,
            kind="incremental" if self.last else "full",
            reason="",
            parent=self.last.id if self.last else None,
            consistency="crash",
            verified=True,
            checkpoint="",
            checkpoint_xml="",
            disks=records,
        )


def _runs(data: bytes, before: bytes | None) -> Iterator[tuple[int, int]]:
    """(start, end) of what a backup records: a full in runs up to 1 MiB, an incremental the grid cells that differ."""
    step = CHUNK_MAX if before is None else GRID
    for start in range(0, len(data), step):
        end = min(start + step, len(data))
        old = b"" if before is None else before[start:end]
        if data[start:end] != old and (before is not None or data[start:end].strip(b"\0")):
            yield start, end


def random_disk(rng: random.Random, size: int) -> bytes:
    """Random, compressible, repeated and zero stretches of odd lengths."""
    data = bytearray(size)
    for _ in range(max(3, size >> 19)):
        start = rng.randrange(0, size, 512)
        length = min(rng.randrange(512, 700 << 10, 512), size - start)
        kind = rng.randrange(3)
        data[start : start + length] = (
            rng.randbytes(length)
            if kind == 0
            else (bytes([rng.randrange(256)]) * length if kind == 1 else bytes(length))
        )
    data[-512:] = rng.randbytes(512)
    return bytes(data)


def changed_disk(rng: random.Random, data: bytes, size: int) -> bytes:
    """The disk after some writes, zeroes and perhaps a new size."""
    result = bytearray(data[:size].ljust(size, b"\0"))
    for _ in range(6):
        start = rng.randrange(0, size, 512)
        length = min(rng.randrange(512, 200 << 10, 512), size - start)
        result[start : start + length] = rng.randbytes(length) if rng.random() < 0.6 else bytes(length)
    return bytes(result)
