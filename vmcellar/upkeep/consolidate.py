"""consolidate: put what a restore reads in sequence where it lies in sequence, and small packs together.

Nothing that a point names is changed: maps name chunks, not places, so it is enough to move chunks to new packs, in the
order in which the newest point of each VM has them on its disks. From the repository alone; what is moved, and how it
is made safe, is in vmcellar/upkeep/rewrite.py.

Two reasons to rewrite packs: a restore of a newest point reads them in small pieces, and the new ones would be read in
at most half as many; or they are small, and at most a quarter as many new ones would hold the same. Both shrink what
they count by a fixed factor, so that repeated runs come to rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from vmcellar.progress import CancelToken, ProgressSink, no_progress
from vmcellar.repository import leases
from vmcellar.repository.layout import HEADER_BYTES, PACK_BYTES, PACK_ROWS_MAX, span_of
from vmcellar.repository.packs import Location, PackRef, groups
from vmcellar.repository.points import RestorePoint
from vmcellar.repository.repository import Repository
from vmcellar.upkeep import rewrite
from vmcellar.upkeep.fresh import with_fresh_index
from vmcellar.upkeep.reach import Live, Reach, ids_of
from vmcellar.upkeep.rewrite import Rewritten

READ_MEAN = 512 << 10
"""A pack from which a restore reads less than this at a time, on average, is fragmented: a disk with 10 ms of seek and
200 MB/s spends four fifths of the time seeking there."""
WINDOW = span_of(1)
"""A restore reads so much of a disk together, pack by pack: that of vmcellar/restore/plan.py."""
READS_MIN = 16
"""Fewer reads are not worth saving."""
SMALL_MIN = 8
"""So many small packs of a kind are put together at the least."""


@dataclass(frozen=True, slots=True)
class ConsolidateReport:
    """What was, or with `dry_run` would be, rewritten; sizes in bytes.

    `old` are keys of packs that are marked now, and go with a gc after its grace time; `live` bytes of them lie in
    `new_packs` new ones. Reads are those that restoring the newest point of every VM takes, before and after.
    """

    dry_run: bool
    packs: int
    old: tuple[str, ...]
    old_bytes: int
    live: int
    new_packs: int
    reads_before: int
    reads_after: int
    notes: tuple[str, ...]


def consolidate(
    repository: Repository,
    *,
    dry_run: bool = False,
    progress: ProgressSink = no_progress,
    cancel: CancelToken | None = None,
) -> ConsolidateReport:
    """One run. Reports points that were walked as stage "gc", and packs that were rewritten as "rewrite".

    Raises what the tier raises, IntegrityError when anything that points need is missing or damaged, PermanentError
    while a gc or another of its kind runs, CancelledError when stopped: rounds that were done stay done.
    """
    cancel = cancel or CancelToken()
    with ExitStack() as stack:
        lease = None
        if not dry_run:
            work = leases.holding(repository.tier, repository.keyring, leases.CONSOLIDATE, repository.clock)
            lease = stack.enter_context(work)
            others = leases.remove_stale(repository.tier, repository.keyring, repository.clock())
            leases.refuse_second(other for other in others if other.id != lease.id)
        own = stack.enter_context(with_fresh_index(repository))
        own.index.refresh(writing=not dry_run)
        report = _Run(own, lease, progress, cancel).run()
    if not dry_run:
        repository.index.refresh()
    return report


class _Run:
    """One run; one thread. Without a lease it only looks."""

    def __init__(
        self, repository: Repository, lease: leases.HeldLease | None, progress: ProgressSink, cancel: CancelToken
    ) -> None:
        self._repository = repository
        self._lease = lease
        self._progress = progress
        self._cancel = cancel
        points = repository.points()
        self._points = points
        self._newest = list({point.vm: point for point in points}.values())

    def run(self) -> ConsolidateReport:
        """Fragmented packs first, as many small ones go with them."""
        live, notes = rewrite.openable(self._repository, self._live())
        before = self._reads()
        total = sum(reads for reads, _ in before.values())
        saved = 0
        done = Rewritten(notes=notes)
        with ThreadPoolExecutor(thread_name_prefix="consolidate") as pool:
            rewriter = rewrite.Rewriter(self._repository, pool, self._check, self._progress)
            for part in rewrite.rounds(each for each in live if _is_fragmented(before.get(each.pack.id))):
                plan = _Plan(self._repository, self._windows, part)
                if plan.reads_after * 2 <= plan.reads_now and plan.reads_now - plan.reads_after >= READS_MIN:
                    saved += plan.reads_now - plan.reads_after
                    done += self._do(rewriter, part, plan)
            gone = {pack.id for pack in done.old}
            for part in rewrite.rounds(each for each in live if each.pack.id not in gone and rewrite.small(each)):
                plan = _Plan(self._repository, self._windows, part)
                if len(part) >= SMALL_MIN and len(plan.packs) * 4 <= len(part):
                    saved += plan.reads_now - plan.reads_after
                    done += self._do(rewriter, part, plan)
        return ConsolidateReport(
            dry_run=self._lease is None,
            packs=len(live),
            old=tuple(pack.key for pack in done.old),
            old_bytes=sum(pack.size for pack in done.old),
            live=done.live,
            new_packs=len(done.new),
            reads_before=total,
            reads_after=total - saved,
            notes=done.notes,
        )

    def _check(self) -> None:
        self._cancel.check()
        if self._lease is not None:
            self._lease.check()

    def _live(self) -> list[Live]:
        """What points need of each pack that no mark names, small packs first."""
        marked = frozenset[bytes]().union(*self._repository.index.marks().values())
        reach = Reach(self._repository, marked, self._progress, self._cancel)
        for point in self._points:
            reach.add(point)
        return sorted(
            (live for pack, live in reach.live.items() if pack not in marked),
            key=lambda live: (live.bytes, live.pack.id),
        )

    def _windows(self) -> Iterator[list[Location]]:
        """What a restore of the newest point of each VM reads together, in the order of the disk."""
        for point in self._newest:
            yield from _windows_of(self._repository, point, self._cancel)

    def _reads(self) -> dict[bytes, tuple[int, int]]:
        """For each pack how many reads such restores take, and of how many bytes."""
        found: dict[bytes, tuple[int, int]] = {}
        for window in self._windows():
            for group in groups(_as_read(window)):
                pack = group.objects[0].pack.id
                reads, size = found.get(pack, (0, 0))
                found[pack] = reads + 1, size + group.end - group.start
        return found

    def _do(self, rewriter: rewrite.Rewriter, part: Sequence[Live], plan: _Plan) -> Rewritten:
        if self._lease is None:
            return Rewritten(tuple(live.pack for live in part), tuple(plan.packs), sum(live.bytes for live in part))
        return rewriter.round(part, plan.order)


def _windows_of(repository: Repository, point: RestorePoint, cancel: CancelToken) -> Iterator[list[Location]]:
    for disk in point.disks:
        disk_map = repository.map(disk)
        for start in range(0, disk.size, WINDOW):
            cancel.check()
            ids: dict[bytes, None] = {}
            for rows in disk_map.rows(start, min(start + WINDOW, disk.size)):
                ids.update(dict.fromkeys(ids_of(rows)))
            located = repository.locate(list(ids))
            if located:
                yield [located[chunk] for chunk in ids]


def _is_fragmented(stats: tuple[int, int] | None) -> bool:
    return stats is not None and stats[1] < READ_MEAN * stats[0]


def _as_read(locations: Iterable[Location]) -> list[Location]:
    return sorted(locations, key=lambda found: (found.pack.id, found.offset))


class _Plan:
    """What one round would come to: the order of its objects, the packs they would make, and the reads before and
    after, of this round's packs alone. Exact: the writer lays objects one after the other.
    """

    def __init__(
        self, repository: Repository, windows: Callable[[], Iterator[list[Location]]], part: Sequence[Live]
    ) -> None:
        objects = rewrite.live_objects(repository, part)
        packs = {live.pack.id for live in part}
        own = [[found for found in window if found.pack.id in packs] for window in windows()]
        self._first = list(dict.fromkeys(found.chunk for window in own for found in window if found.chunk in objects))
        placed = _lay(part[0].pack.kind, objects, self.order(objects))
        self.packs = list(dict.fromkeys(found.pack for found in placed.values()))
        self.reads_now = sum(_count(window) for window in own)
        self.reads_after = sum(_count([placed[found.chunk] for found in window]) for window in own)

    def order(self, objects: Mapping[bytes, Location]) -> Sequence[bytes]:
        """As the newest points have them on their disks; what only older ones have comes behind, as it lies."""
        return list(dict.fromkeys([*(each for each in self._first if each in objects), *rewrite.as_they_lie(objects)]))


def _count(window: Iterable[Location]) -> int:
    return sum(1 for _ in groups(_as_read(window)))


def _lay(kind: int, objects: Mapping[bytes, Location], order: Sequence[bytes]) -> dict[bytes, Location]:
    """Where the writer would put these objects."""
    placed: dict[bytes, Location] = {}
    number, ordinal, offset = 0, 0, HEADER_BYTES
    for each in order:
        found = objects[each]
        if ordinal and (offset + found.stored > PACK_BYTES or ordinal >= PACK_ROWS_MAX):
            number, ordinal, offset = number + 1, 0, HEADER_BYTES
        pack = PackRef(number.to_bytes(16, "big"), kind, bytes(16), PACK_BYTES * 2)
        placed[each] = found._replace(pack=pack, ordinal=ordinal, offset=offset)
        ordinal, offset = ordinal + 1, offset + found.stored
    return placed
