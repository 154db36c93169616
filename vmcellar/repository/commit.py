"""commit: the one place where a point becomes part of a repository, in the one order that a crash cannot hurt.

1. the data packs are on the tier (placed and verified before); 2. the metadata pack with new map nodes and small
artifacts, read back; 3. the index part; 4. every reference of the new nodes resolves, to packs that no gc is about to
delete; 5. the point; 6. a second look (`guard`), after which nothing that the point needs can go.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np

from vmcellar.errors import IntegrityError, VmcellarError
from vmcellar.repository import layout, nodes, points
from vmcellar.repository.codec import Compression
from vmcellar.repository.guard import Guard
from vmcellar.repository.index_parts import PackEntry
from vmcellar.repository.layout import (
    ABSENT,
    CHUNK_MAX,
    ID_BYTES,
    KIND_DATA,
    KIND_META,
    WHAT_CHUNK,
    WHAT_NODE,
    pack_key,
)
from vmcellar.repository.pack_format import Table
from vmcellar.repository.packs import PackReader, PackRef, PackWriter, verify_pack
from vmcellar.repository.points import Artifact, RestorePoint
from vmcellar.tiers.base import ExistsError, lock_now
from vmcellar.tiers.cellar import CellarTier

if TYPE_CHECKING:
    from vmcellar.repository.leases import HeldLease
    from vmcellar.repository.repository import Repository

SMALL_ARTIFACT = 64 << 10
"""Artifacts below this lie with the metadata, so that a domain can be defined while data packs are in an archive."""

_META_COMPRESSION = Compression(3)


class Commit:
    """One commit; used once, by one thread."""

    def __init__(self, repository: Repository, pool: Executor, lease: HeldLease | None) -> None:
        """`pool` decodes when packs are read back; the caller is not one of its threads. `lease` is that of the run."""
        self._repository = repository
        self._tier = repository.tier
        self._keyring = repository.keyring
        self._pool = pool
        self._lease = lease

    def run(
        self,
        packs: Mapping[bytes, Table],
        new_nodes: Mapping[bytes, bytes],
        artifacts: Mapping[str, bytes],
        point: RestorePoint,
    ) -> RestorePoint:
        """The committed point, with artifacts and metadata packs filled in.

        `packs` are the TOC_ROWs of placed and verified data packs by their ids. Raises what the tier raises,
        IntegrityError when something that the point needs is not there, TransientError when the lease was taken away,
        PermanentError when gc has marked a pack that this run deduplicated against; nothing refers to what was written
        then. A point that an earlier try of the same commit left is found to be equal, and given back.
        """
        self._repository.index.refresh(writing=True)
        guard = Guard(self._repository, self._lease, point)
        placed = [self._placed(pack_id, rows) for pack_id, rows in packs.items()]
        records = tuple(self._artifact(name, data) for name, data in artifacts.items())
        written = self._write(new_nodes, artifacts)
        self._repository.index.add([*placed, *written])
        self._check_references(new_nodes, point, records, guard)
        names = tuple(entry.pack.id.hex() for entry in written)
        done = replace(point, artifacts=records, metadata_packs=names)
        data = points.encode(self._keyring, self._repository.id, done)
        guard.before_point()
        try:
            self._tier.put(layout.point_key(done.id), data)
        except ExistsError:
            done = self._written_before(done)
        except VmcellarError:
            guard.take_back()  # it may have appeared before that failed, and nobody may ever try again
            raise
        guard.after_point()
        hot = self._tier.hot if isinstance(self._tier, CellarTier) else self._tier
        lock_now(hot, layout.point_key(done.id), self._repository.clock())
        return done

    def _written_before(self, point: RestorePoint) -> RestorePoint:
        """The point of this id that an earlier try of the same commit left; IntegrityError when it is another one."""
        data = self._tier.get(layout.point_key(point.id))
        found = points.decode(self._keyring, self._repository.id, point.id, data)
        if not points.same_backup(found, point):
            raise IntegrityError(
                f"{point.vm}: there is a restore point {point.id} already, and it is not this backup's: "
                "nothing was written over",
                hint="run the backup again: it gets an id of its own",
            )
        return found

    def _placed(self, pack_id: bytes, rows: Table) -> PackEntry:
        with PackReader(self._tier, pack_key(KIND_DATA, pack_id), self._keyring) as reader:
            return PackEntry(reader.pack, rows)

    def _artifact(self, name: str, data: bytes) -> Artifact:
        return Artifact(name, len(data), tuple(self._keyring.chunk_id(piece).hex() for piece in _pieces(data)))

    def _write(self, new_nodes: Mapping[bytes, bytes], artifacts: Mapping[str, bytes]) -> list[PackEntry]:
        staging = self._tier.staging_dir() / f"commit-{uuid4().hex}"
        staging.mkdir(mode=0o700)
        try:
            large = {name: data for name, data in artifacts.items() if len(data) >= SMALL_ARTIFACT}
            small = {name: data for name, data in artifacts.items() if name not in large}
            entries = self._write_packs(staging, KIND_DATA, self._chunks_of(large.values()))
            meta = {**self._chunks_of(small.values()), **{node: (data, WHAT_NODE) for node, data in new_nodes.items()}}
            return entries + self._write_packs(staging, KIND_META, meta)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _chunks_of(self, artifacts: Iterable[bytes]) -> dict[bytes, tuple[bytes, int]]:
        return {self._keyring.chunk_id(piece): (piece, WHAT_CHUNK) for data in artifacts for piece in _pieces(data)}

    def _write_packs(self, staging: Path, kind: int, objects: dict[bytes, tuple[bytes, int]]) -> list[PackEntry]:
        new = objects.keys() - self._repository.index.known(objects)
        if not new:
            return []
        writer = PackWriter(self._keyring, staging, kind, _META_COMPRESSION)
        try:
            for object_id, (data, what) in objects.items():
                if object_id in new:
                    writer.append(object_id, data, what)
            sealed = writer.finish()
        except BaseException:
            writer.abort()
            raise
        for pack in sealed:
            self._tier.adopt(pack.path, pack.key)
            verify_pack(self._tier, pack.key, self._keyring, self._pool)
        return [PackEntry(self._ref(pack.key), pack.rows) for pack in sealed]

    def _ref(self, key: str) -> PackRef:
        with PackReader(self._tier, key, self._keyring) as reader:
            return reader.pack

    def _check_references(
        self, new_nodes: Mapping[bytes, bytes], point: RestorePoint, artifacts: Iterable[Artifact], guard: Guard
    ) -> None:
        roots = {bytes.fromhex(disk.root) for disk in point.disks} - {ABSENT}
        chunks = {bytes.fromhex(chunk) for artifact in artifacts for chunk in artifact.chunks}
        self._check_known(f"point {point.id}", dict.fromkeys(roots | chunks, 1), guard)
        for node, data in new_nodes.items():
            self._check_known(f"map node {node.hex()}", _references(data), guard)

    def _check_known(self, what: str, needed: Mapping[bytes, int], guard: Guard) -> None:
        """Every id in `needed` is in the index, with at least so many bytes, and not in packs that are to go."""
        found = self._repository.index.locate(needed)
        for wanted, length in needed.items():
            if wanted not in found or found[wanted].length < length:
                raise IntegrityError(
                    f"{what} needs object {wanted.hex()}, which the repository does not have: nothing was committed",
                    hint="run the backup again with --full; if it comes again, `vmcellar verify --all`",
                )
        guard.relies_on(found)


def _references(node: bytes) -> dict[bytes, int]:
    """What a node refers to, and how many bytes of it."""
    if node[0] == layout.NODE_INNER:
        children = nodes.decode_inner(node, node[1])
        return {children[i].tobytes(): 1 for i in np.flatnonzero(children.any(axis=1))}
    rows = nodes.decode_leaf(node, 0)
    ids, ends = rows["chunk"].tobytes(), rows["chunk_offset"].astype(np.int64) + rows["length"]
    needed: dict[bytes, int] = {}
    for place, end in enumerate(ends.tolist()):
        chunk = ids[place * ID_BYTES : (place + 1) * ID_BYTES]
        needed[chunk] = max(needed.get(chunk, 0), end)
    return needed


def _pieces(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), CHUNK_MAX):
        yield data[start : start + CHUNK_MAX]
