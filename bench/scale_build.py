"""A repository with the metadata of many restore points, for `bench.scale`: real writers, holes for data packs."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vmcellar.repository import index_parts, layout, points
from vmcellar.repository.codec import Compression
from vmcellar.repository.diskmap import DiskMap
from vmcellar.repository.index_parts import PackEntry
from vmcellar.repository.layout import CHUNK_MAX, GRID, KIND_DATA, KIND_META, LEAF_BYTES, TOC_ROW, WHAT_NODE
from vmcellar.repository.nodes import Rows, no_rows
from vmcellar.repository.packs import PackRef, PackWriter
from vmcellar.repository.points import DiskRecord, RestorePoint
from vmcellar.repository.repository import Repository, make, unlock
from vmcellar.tiers.local import LocalTier

DISK = (1 << 50) // 10_000 // GRID * GRID
PER_VM = 100
TEMPLATES = 10
AREAS = 16
AREA = 1 << 30
RUNS = 200
LEAVES = 24
DAY = 86_400.0
NOW = 1_800_000_000.0
STORED = 0.5
PASSPHRASE = b"bench"


class BuildTier(LocalTier):
    """A local tier whose writes are not made durable, so that building takes minutes."""

    def put(self, key: str, data: bytes) -> None:
        """See Tier.put."""
        path = self.path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def adopt(self, path: Path, key: str) -> None:
        """See Tier.adopt."""
        target = self.path / key
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)

    def hole(self, key: str, size: int) -> None:
        """An object of zeroes that takes no room."""
        target = self.path / key
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            file.truncate(size)


@dataclass(slots=True)
class Nodes:
    """Map nodes of one VM in memory, in place of a repository that would read them back."""

    repository: Repository
    held: dict[bytes, bytes] = field(default_factory=dict)

    def fetch_nodes(self, ids: Sequence[bytes]) -> Mapping[bytes, bytes]:
        """See NodeStore."""
        return {node: self.held[node] for node in ids}

    def node_id(self, data: bytes) -> bytes:
        """See NodeStore."""
        return self.repository.node_id(data)


class Builder:
    """Adds VMs to a repository."""

    def __init__(self, folder: Path) -> None:
        self.tier = BuildTier(folder / "hot")
        make(self.tier, PASSPHRASE)
        keyring, repository_id = unlock(self.tier, PASSPHRASE)
        self.repository = Repository(self.tier, keyring, repository_id, folder / "cache")
        self.staging = self.tier.staging_dir()
        self.dice = np.random.default_rng(7)
        self.epoch = keyring.epoch_id
        self.templates = [self._ids(AREA * 4 // CHUNK_MAX) for _ in range(TEMPLATES)]
        for ids in self.templates:
            self._index(self._data_packs(ids, np.full(len(ids), CHUNK_MAX)))

    def close(self) -> None:
        """Let the repository go."""
        self.repository.close()

    def _ids(self, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
        return self.dice.integers(0, 256, (count, layout.ID_BYTES), np.uint8)

    def vm(self, number: int) -> None:
        """All points of one VM."""
        store = Nodes(self.repository)
        parent: RestorePoint | None = None
        held = DiskMap(store, DISK)
        for nth in range(PER_VM):
            rows, new = self._full(number) if nth == 0 else self._changes()
            root, made = held.replace(rows)
            store.held.update(made)
            held = DiskMap(store, DISK, root)
            data = self._data_packs(rows["chunk"][new], rows["length"][new])
            meta = self._meta_packs(made)
            self._index([*data, *meta])
            when = NOW - (PER_VM - nth) * DAY + number
            parent = self._point(f"vm{number:03}", held, meta, when, parent)

    def _index(self, entries: list[PackEntry]) -> None:
        """Parts on the tier, as `Index.add` writes them; the local cache is measured when it is made from them."""
        for part in index_parts.parts_of(entries):
            name = secrets.token_bytes(layout.NAME_BYTES)
            self.tier.put(layout.index_key(name), index_parts.encode(self.repository.keyring, name, part))

    def _full(self, number: int) -> tuple[Rows, slice]:
        starts = np.concatenate(
            [np.arange(4 * AREA // CHUNK_MAX)]
            + [
                np.arange(AREA // CHUNK_MAX) + area * (DISK // AREAS // LEAF_BYTES) * LEAF_BYTES // CHUNK_MAX
                for area in range(4, AREAS)
            ]
        )
        rows = no_rows(len(starts))
        rows["offset"], rows["length"] = starts * CHUNK_MAX, CHUNK_MAX
        template = self.templates[number % TEMPLATES]
        rows["chunk"][: len(template)] = template
        rows["chunk"][len(template) :] = self._ids(len(starts) - len(template))
        return rows, slice(len(template), None)

    def _changes(self) -> tuple[Rows, slice]:
        """Runs of 64 KiB to 1 MiB; two in three of the leaves are among the busiest eighth of what is in use."""
        used = np.concatenate(
            [
                np.arange(AREA // LEAF_BYTES) + (area * (DISK // AREAS // LEAF_BYTES) if area >= 4 else area * 32)
                for area in range(AREAS)
            ]
        )
        busy = used[::8]
        leaves = np.union1d(self.dice.choice(busy, LEAVES * 2 // 3), self.dice.choice(used, LEAVES // 3))
        slots = np.unique(self.dice.choice(leaves, RUNS) * 32 + self.dice.integers(0, 32, RUNS))
        rows = no_rows(len(slots))
        first = self.dice.integers(0, 16, len(slots))
        count = np.minimum(self.dice.geometric(0.25, len(slots)), 16 - first)
        rows["offset"], rows["length"] = slots * CHUNK_MAX + first * GRID, count * GRID
        rows["chunk"] = self._ids(len(slots))
        return rows, slice(None)

    def _data_packs(
        self, ids: np.ndarray[tuple[int, int], np.dtype[np.uint8]], lengths: np.ndarray[tuple[int], np.dtype[np.uint32]]
    ) -> list[PackEntry]:
        per_pack = int(layout.PACK_BYTES / CHUNK_MAX / STORED)
        entries = []
        for start in range(0, len(ids), per_pack):
            rows = np.zeros(len(ids[start : start + per_pack]), TOC_ROW)
            rows["chunk"], rows["length"] = ids[start : start + per_pack], lengths[start : start + per_pack]
            rows["stored"] = (rows["length"] * STORED).astype(np.uint32)
            rows["offset"] = layout.HEADER_BYTES + np.cumsum(rows["stored"]) - rows["stored"]
            rows["method"] = layout.METHOD_ZSTD
            size = (int(rows["stored"].sum()) // layout.PACK_BLOCK + 2) * layout.PACK_BLOCK
            pack = PackRef(secrets.token_bytes(layout.NAME_BYTES), KIND_DATA, self.epoch, size)
            self.tier.hole(pack.key, size)
            entries.append(PackEntry(pack, rows))
        return entries

    def _meta_packs(self, nodes: Mapping[bytes, bytes]) -> list[PackEntry]:
        writer = PackWriter(self.repository.keyring, self.staging, KIND_META, Compression(3))
        for node, data in nodes.items():
            writer.append(node, data, WHAT_NODE)
        sealed = writer.finish()
        entries = [
            PackEntry(PackRef(pack.id, KIND_META, bytes(layout.NAME_BYTES), pack.size), pack.rows) for pack in sealed
        ]
        for pack in sealed:
            self.tier.adopt(pack.path, pack.key)
        return entries

    def _point(
        self, vm: str, held: DiskMap, meta: list[PackEntry], when: float, parent: RestorePoint | None
    ) -> RestorePoint:
        disk = DiskRecord("vda", DISK, held.root.hex(), held.level, "qcow2", f"/images/{vm}.qcow2", "serial")
        point = RestorePoint(
            id=points.new_point_id(when),
            vm=vm,
            vm_uuid="6b1f0d5e-0000-4000-8000-000000000001",
            time=when,
            kind="incremental" if parent else "full",
            reason="" if parent else "first backup",
            parent=parent.id if parent else None,
            consistency="quiesced",
            verified=True,
            checkpoint=f"vmcellar-{when:.0f}",
            checkpoint_xml="<domaincheckpoint>" + "x" * 600 + "</domaincheckpoint>",
            disks=(disk,),
            repository=self.repository.id.hex(),
            metadata_packs=tuple(entry.pack.id.hex() for entry in meta),
            seconds={"export": 1.0, "compress": 1.0, "verify": 1.0},
        )
        self.tier.put(layout.point_key(point.id), points.encode(self.repository.keyring, self.repository.id, point))
        return point
