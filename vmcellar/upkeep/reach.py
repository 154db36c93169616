"""What the restore points need: a walk over all disk maps that stops at the first thing it cannot read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vmcellar.errors import IntegrityError
from vmcellar.progress import CancelToken, ProgressSink
from vmcellar.repository import nodes
from vmcellar.repository.diskmap import BATCH
from vmcellar.repository.layout import ABSENT
from vmcellar.repository.packs import Location, PackRef
from vmcellar.upkeep.idset import Ids, IdSet, id_bytes, id_rows

if TYPE_CHECKING:
    from vmcellar.repository.points import DiskRecord, RestorePoint
    from vmcellar.repository.repository import Repository


@dataclass(slots=True)
class Live:
    """What of one pack the points refer to: `bytes` as stored, and for each ordinal whether it is one of them."""

    pack: PackRef
    bytes: int = 0
    ordinals: bytearray = field(default_factory=bytearray)

    def add(self, found: Location) -> None:
        """Count an object, once."""
        if found.ordinal >= len(self.ordinals):
            self.ordinals.extend(bytes(found.ordinal + 1 - len(self.ordinals)))
        if not self.ordinals[found.ordinal]:
            self.ordinals[found.ordinal] = 1
            self.bytes += found.stored

    def has(self, ordinal: int) -> bool:
        """Whether the points refer to this object of the pack."""
        return ordinal < len(self.ordinals) and bool(self.ordinals[ordinal])


class Reach:
    """Collects `packs`, the ids of every pack that has to stay, `live`, what is referred to in every pack, and
    `relieved`: for packs that a mark names, the objects which also lie elsewhere. One thread.

    A copy in a pack that no mark names always counts, so that a copy which is damaged never outlives the whole one. One
    in a marked pack counts as long as there is no other that is not marked and never failed a check. A node that points
    share is read once, and a chunk is looked up once: leaves have most of theirs in common with older ones. Keeps about
    100 bytes for each distinct node, and 40 for each distinct chunk (80 at times; see IdSet).
    """

    def __init__(
        self, repository: Repository, marked: Collection[bytes], progress: ProgressSink, cancel: CancelToken
    ) -> None:
        self.packs: set[bytes] = set()
        self.live: dict[bytes, Live] = {}
        self.relieved: dict[bytes, set[bytes]] = {}
        self._repository = repository
        self._marked = marked
        self._progress = progress
        self._cancel = cancel
        self._seen: set[bytes] = set()
        self._chunks = IdSet()
        self._new: list[PackRef] = []

    def add(self, point: RestorePoint) -> list[PackRef]:
        """Walk one point, and name the packs that it is the first to need; IntegrityError that names what is missing or
        damaged.
        """
        self._new = []
        self._need_chunks(id_rows([bytes.fromhex(name) for each in point.artifacts for name in each.chunks]))
        for disk in point.disks:
            self._walk(disk)
        self._progress("gc", 1)
        return self._new

    def _walk(self, disk: DiskRecord) -> None:
        self._repository.map(disk)  # checks that level and size fit
        pending = [(disk.level, bytes.fromhex(disk.root))]
        while pending:
            self._cancel.check()
            level = pending[-1][0]
            batch = self._unseen(pending, level)
            if not batch:
                continue
            self._need(batch)
            found = self._repository.fetch_nodes(batch)
            if level:
                pending += [(level - 1, child) for node in batch for child in _children(found[node], level)]
            else:
                leaves = [nodes.decode_leaf(found[node], 0)["chunk"] for node in batch]
                self._need_chunks(np.concatenate(leaves))

    def _unseen(self, pending: list[tuple[int, bytes]], level: int) -> list[bytes]:
        """Take up to BATCH nodes of one level off the end of `pending`; those of them that are new."""
        taken: list[bytes] = []
        while pending and pending[-1][0] == level and len(taken) < BATCH:
            taken.append(pending.pop()[1])
        new = [node for node in dict.fromkeys(taken) if node != ABSENT and node not in self._seen]
        self._seen.update(new)
        return new

    def _need_chunks(self, ids: Ids) -> None:
        self._need(id_bytes(self._chunks.add(ids)))

    def _need(self, ids: Iterable[bytes]) -> None:
        wanted = set(ids)
        copies = self._repository.index.copies(wanted)
        if len(copies) < len(wanted):  # of a backup that committed since the index was read
            self._repository.index.refresh()
            self._chunks = IdSet()  # it may know more copies now of what is met again
            copies = self._repository.index.copies(wanted)
        for name in wanted:
            if name not in copies:
                raise IntegrityError(
                    f"object {name.hex()}, which a restore point needs, is in no pack that the index names: "
                    "nothing is deleted",
                    hint="type `vmcellar rebuild-index`, then `vmcellar verify --all`",
                )
            self._count(name, copies[name])

    def _count(self, name: bytes, copies: Sequence[tuple[Location, bool]]) -> None:
        good_elsewhere = any(found.pack.id not in self._marked and not damaged for found, damaged in copies)
        for found, _ in copies:
            pack = found.pack.id
            self.live.setdefault(pack, Live(found.pack)).add(found)
            if pack in self._marked and good_elsewhere:
                self.relieved.setdefault(pack, set()).add(name)
            elif pack not in self.packs:
                self.packs.add(pack)
                self._new.append(found.pack)


def _children(data: bytes, level: int) -> Iterator[bytes]:
    children = nodes.decode_inner(data, level)
    return (children[i].tobytes() for i in np.flatnonzero(children.any(axis=1)))


def ids_of(rows: nodes.Rows) -> Sequence[bytes]:
    """The chunk id of each row of a leaf."""
    return id_bytes(rows["chunk"])
