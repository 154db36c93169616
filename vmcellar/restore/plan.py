"""What a restore needs, found and checked before the first byte is written (pitfall 27).

Every map node is read and checked, every chunk located, every pack seen on the tier with the length that the index
tells. Disks are taken window by window, so memory is bounded whatever their size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vmcellar.errors import IntegrityError, PermanentError, TransientError, VmcellarError
from vmcellar.progress import CancelToken
from vmcellar.repository import nodes
from vmcellar.repository.diskmap import fetch_ahead
from vmcellar.repository.layout import ID_BYTES, LEAF_BYTES, span_of
from vmcellar.repository.nodes import Rows
from vmcellar.repository.packs import Location, PackRef
from vmcellar.repository.read_ahead import is_near
from vmcellar.repository.scrub_walk import pack_problems
from vmcellar.restore.qcow2 import CLUSTER, UsedClusters
from vmcellar.restore.report import LostRange, merge_lost
from vmcellar.tiers.base import ArchivedError

if TYPE_CHECKING:
    from vmcellar.repository.points import Artifact, DiskRecord, RestorePoint
    from vmcellar.repository.repository import Repository

WINDOW = span_of(1)
"""Bytes of disk that are resolved at once: 8 GiB, at most 131072 extents of 64 KiB, some 50 MB of locations."""

AHEAD = 8
"""Windows whose map nodes are read at once from a server; the repository remembers twice as many."""

_HINT = "type `vmcellar verify --all` to see what else is missing, or restore the rest with --best-effort"


@dataclass(frozen=True, slots=True)
class Window:
    """One window of a disk: its extents, and where each chunk that they name lies."""

    target: str
    rows: Rows
    locations: Mapping[bytes, Location]


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """What one disk takes: `size` bytes of disk, of which `data` are not zero."""

    target: str
    size: int
    data: int


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What a restore will do: `packs` to read from and `stored` bytes in them, and what is lost already.

    `keys` are the keys of those packs that are there.
    """

    point: str
    vm: str
    disks: tuple[DiskPlan, ...]
    packs: int
    stored: int
    lost: tuple[LostRange, ...]
    keys: tuple[str, ...]

    @property
    def data(self) -> int:
        """Bytes to write, without zeroes."""
        return sum(disk.data for disk in self.disks)


class Resolver:
    """Finds where the bytes of a point's disks lie. One thread.

    Strict, it raises on the first thing that is missing or damaged, naming VM, disk and offset. With `best_effort` it
    goes on and collects the ranges in `lost`; what it yields then leaves them out.
    """

    def __init__(self, repository: Repository, point: RestorePoint, best_effort: bool, cancel: CancelToken) -> None:
        self.best_effort = best_effort
        self.lost: list[LostRange] = []
        self.packs: dict[bytes, str] = {}
        self.keys: dict[str, None] = {}
        self._asked: dict[bytes, str] = {}
        self._repository = repository
        self._vm = point.vm
        self._refreshed = False
        self._cancel = cancel

    def windows(self, disk: DiskRecord) -> Iterator[Window]:
        """All windows of a disk that hold data, in order."""
        for _, _, window in self.spans(disk):
            if len(window.rows):
                yield window

    def spans(self, disk: DiskRecord) -> Iterator[tuple[int, int, Window]]:
        """(start, end, what is there) of all windows of a disk in order, also of those that hold no data."""
        for start in range(0, disk.size, WINDOW):
            self._cancel.check()
            if not start % (AHEAD * WINDOW):
                self._read_ahead([disk], start, AHEAD)
            end = min(start + WINDOW, disk.size)
            yield start, end, self._locate(disk.target, self._rows(disk, start, end))

    def look_ahead(self, point: RestorePoint, disks: Sequence[DiskRecord]) -> None:
        """Ask a server at once for what is asked of it one after the other otherwise: the map nodes of all disks, and
        whether the packs of the files beside them are there.
        """
        if not is_near(self._repository.tier):
            self._read_ahead(disks, 0, max(1, AHEAD // max(1, len(disks))))
            chunks = {bytes.fromhex(chunk) for artifact in point.artifacts for chunk in artifact.chunks}
            self._ask(found.pack for found in self._find(sorted(chunks)).values())

    def _read_ahead(self, disks: Sequence[DiskRecord], start: int, windows: int) -> None:
        """Whoever needs what cannot be read will say so."""
        if not is_near(self._repository.tier):
            with suppress(IntegrityError, PermanentError, TransientError):
                maps = [self._repository.map(disk) for disk in disks]
                fetch_ahead(self._repository, maps, start, start + windows * WINDOW)

    def artifact(self, artifact: Artifact) -> int:
        """Bytes stored for an artifact, all of whose chunks lie in whole packs; 0 when one is lost."""
        ids = list(dict.fromkeys(bytes.fromhex(chunk) for chunk in artifact.chunks))
        located = self._find(ids)
        self._look_at_packs(located)
        for chunk in ids:
            found = located.get(chunk)
            reason = self._pack_problem(found.pack) if found else f"no pack holds chunk {chunk.hex()}"
            if reason:
                self.lose_artifact(artifact, IntegrityError(reason, hint=_HINT))
                return 0
        return sum(found.stored for found in located.values())

    def lose_artifact(self, artifact: Artifact, error: VmcellarError) -> None:
        """Note that an artifact cannot be restored; raises `error` with its name unless this is best effort. What must
        be thawed first is not lost.
        """
        if not self.best_effort or isinstance(error, ArchivedError):
            raise type(error)(f"{self._vm}: {artifact.name}: {error.message}", hint=error.hint) from error
        self.lost.append(LostRange(artifact.name, 0, artifact.size, error.message))

    def _rows(self, disk: DiskRecord, start: int, end: int) -> Rows:
        try:
            return _joined(self._repository.map(disk).rows(start, end))
        except (IntegrityError, PermanentError, TransientError) as error:
            if not self.best_effort:
                raise self.named(error, disk.target, start) from error
        return self._readable_rows(disk, start, end)

    def _readable_rows(self, disk: DiskRecord, start: int, end: int) -> Rows:
        """The extents of those leaves that can be read."""
        found: list[Rows] = []
        for leaf in range(start, end, LEAF_BYTES):
            leaf_end = min(leaf + LEAF_BYTES, end)
            try:
                found.append(_joined(self._repository.map(disk).rows(leaf, leaf_end)))
            except (IntegrityError, PermanentError, TransientError) as error:
                self.lost.append(LostRange(disk.target, leaf, leaf_end - leaf, error.message))
        return _joined(found)

    def _locate(self, target: str, rows: Rows) -> Window:
        if not len(rows):
            return Window(target, rows, {})
        ids = chunk_ids(rows)
        located = self._find(list(dict.fromkeys(ids)))
        self._look_at_packs(located)
        wrong = [self._problem(chunk, row, located) for chunk, row in zip(ids, rows, strict=True)]
        bad = np.array([bool(reason) for reason in wrong])
        if bad.any():
            self._give_up(target, rows[bad], [reason for reason in wrong if reason])
        return Window(target, rows[~bad], located)

    def _find(self, ids: list[bytes]) -> dict[bytes, Location]:
        """Where these chunks lie; another process's index parts are fetched once when one is unknown."""
        found = self._repository.index.locate(ids)
        if len(found) == len(ids) or self._refreshed:
            return found
        self._refreshed = True
        try:
            self._repository.index.refresh()
        except IntegrityError:
            if not self.best_effort:
                raise
        return self._repository.index.locate(ids)

    def _problem(self, chunk: bytes, row: np.void, located: Mapping[bytes, Location]) -> str:
        """Empty when the row's bytes lie in a whole pack, else what is wrong."""
        found = located.get(chunk)
        if found is None:
            return f"no pack holds chunk {chunk.hex()}"
        if int(row["chunk_offset"]) + int(row["length"]) > found.length:
            return f"chunk {chunk.hex()} has {found.length} bytes, fewer than the map asks for"
        return self._pack_problem(found.pack)

    def _look_at_packs(self, located: Mapping[bytes, Location]) -> None:
        """Whether each pack is there, of those that were not looked at before."""
        new = {found.pack.id: found.pack for found in located.values() if found.pack.id not in self.packs}
        self._ask(new.values())
        self.packs.update({name: self._asked[name] for name in new})
        self.keys.update((pack.key, None) for name, pack in new.items() if not self.packs[name])

    def _ask(self, packs: Iterable[PackRef]) -> None:
        self._asked.update(pack_problems(self._repository, [pack for pack in packs if pack.id not in self._asked]))

    def _pack_problem(self, pack: PackRef) -> str:
        return self.packs[pack.id]

    def _give_up(self, target: str, rows: Rows, reasons: Sequence[str]) -> None:
        if not self.best_effort:
            error = IntegrityError(reasons[0], hint=_HINT)
            raise self.named(error, target, int(rows["offset"][0]))
        for row, reason in zip(rows, reasons, strict=True):
            self.lost.append(LostRange(target, int(row["offset"]), int(row["length"]), reason))

    def named(self, error: VmcellarError, target: str, offset: int) -> VmcellarError:
        """The same error with VM, disk and offset in front."""
        return type(error)(f"{self._vm}: disk {target} at byte {offset}: {error.message}", hint=error.hint)


def chosen_disks(point: RestorePoint, targets: Sequence[str]) -> tuple[DiskRecord, ...]:
    """The records of `targets`, of all disks when it is empty; UsageError for one that the point does not have."""
    return tuple(point.disk(target) for target in dict.fromkeys(targets)) or point.disks


def make_plan(
    repository: Repository,
    point: RestorePoint,
    targets: Sequence[str] = (),
    best_effort: bool = False,
    cancel: CancelToken | None = None,
) -> RestorePlan:
    """Resolve and check everything that a restore of `point` needs, without writing anything.

    IntegrityError, PermanentError or TransientError name the first disk and offset that cannot be restored; with
    `best_effort` they are in the plan's `lost` instead.
    """
    return survey(repository, point, targets, best_effort, cancel or CancelToken())[0]


def survey(
    repository: Repository,
    point: RestorePoint,
    targets: Sequence[str],
    best_effort: bool,
    cancel: CancelToken,
    cluster_of: Callable[[int], int] = lambda _size: CLUSTER,
) -> tuple[RestorePlan, dict[str, UsedClusters]]:
    """The plan, and for each disk which clusters hold data; `cluster_of` a disk's size are the bytes of one."""
    resolver = Resolver(repository, point, best_effort, cancel)
    chosen = chosen_disks(point, targets)
    resolver.look_ahead(point, chosen)
    disks, stored, used = [], 0, {}
    for disk in chosen:
        data = 0
        clusters = used[disk.target] = UsedClusters(disk.size, cluster_of(disk.size))
        for window in resolver.windows(disk):
            data += int(window.rows["length"].sum(dtype=np.int64))
            clusters.add(window.rows)
            needed = {chunk: window.locations[chunk] for chunk in chunk_ids(window.rows)}
            stored += sum(found.stored for found in needed.values())
        disks.append(DiskPlan(disk.target, disk.size, data))
    for artifact in point.artifacts:
        stored += resolver.artifact(artifact)
    packs, lost = len(resolver.packs), merge_lost(resolver.lost)
    return RestorePlan(point.id, point.vm, tuple(disks), packs, stored, lost, tuple(resolver.keys)), used


def _joined(parts: Iterator[Rows] | Sequence[Rows]) -> Rows:
    found = list(parts)
    return np.concatenate(found) if found else nodes.no_rows()


def chunk_ids(rows: Rows) -> list[bytes]:
    """The chunk id of each row."""
    data = rows["chunk"].tobytes()
    return [data[start : start + ID_BYTES] for start in range(0, len(data), ID_BYTES)]
