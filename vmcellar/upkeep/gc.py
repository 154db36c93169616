"""gc: delete packs that no restore point needs, in two phases with a grace time between them (pitfall 20).

A first run marks what no point needs. A later one, when the grace time has passed, looks again and deletes what still
no point needs. Order of a run, on which the guard of commits relies (vmcellar/repository/guard.py): marks are listed,
then leases (stale ones are taken away), then packs, the index, and last the points; then old marks are worked off
(index parts first, then packs, then the mark), then new ones are written. Nothing at all is deleted when any listing,
point, node, index part or lease cannot be read, or when a pinned point or anything that a point needs is missing. This
host's index cache is not trusted for it: each run reads the parts anew. A run that dies is gone on with by the next.

What a tier holds locked (S3 object lock, immutable files) is left and named; its mark stays, and a later run deletes
it. What points need is locked anew where its lock would soon end: see vmcellar/upkeep/lock.py.

Last of all, packs of which less than half is needed are repacked: see vmcellar/upkeep/rewrite.py. They are marked then,
and go like all others; before that, the copies that replace them are read once more.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from vmcellar.errors import IntegrityError, PermanentError
from vmcellar.progress import CancelToken, ProgressSink, no_progress
from vmcellar.repository import evidence, layout, leases, marks
from vmcellar.repository.layout import KIND_DATA, KIND_META, pack_key
from vmcellar.repository.leases import FoundLease
from vmcellar.repository.marks import Mark
from vmcellar.repository.points import RestorePoint
from vmcellar.repository.repository import Repository
from vmcellar.tiers.base import LockedError, NotFoundError
from vmcellar.upkeep import index_parts, lock, pins, rewrite, staging
from vmcellar.upkeep.fresh import with_fresh_index
from vmcellar.upkeep.gcreport import GcReport, pack_id
from vmcellar.upkeep.lock import Locked
from vmcellar.upkeep.reach import Live, Reach
from vmcellar.upkeep.rewrite import Rewritten
from vmcellar.upkeep.staging import Left
from vmcellar.upkeep.survey import Needed, for_ever

GRACE = 24 * 3600.0
"""Seconds between marking and deleting, unless the caller says otherwise."""
_BACKUP = "backup "
"""How leases of writers begin; all but those of upkeep hold gc back."""

UNFINISHED_LEAST = 24 * 3600.0
"""Seconds for which a half-written upload stays in any case: its writer may live, and holds no lease that tells."""


@dataclass(slots=True)
class _Found:
    """What one run saw, in the order in which it looked."""

    marks: dict[str, Mark]
    leases: list[FoundLease]
    packs: dict[bytes, tuple[int, int]]
    points: list[RestorePoint]
    reach: Reach
    indexed: set[bytes]
    lost: set[bytes]
    evidence: list[str]
    left: list[Left]
    notes: list[str] = field(default_factory=list)

    @property
    def needed(self) -> set[bytes]:
        return self.reach.packs

    @property
    def marked(self) -> set[bytes]:
        return {pack for mark in self.marks.values() for pack in mark.packs()}


def collect(
    repository: Repository,
    *,
    grace: float = GRACE,
    kept: Needed = for_ever,
    dry_run: bool = False,
    progress: ProgressSink = no_progress,
    cancel: CancelToken | None = None,
) -> GcReport:
    """One run; `grace` in seconds; `kept` says until when retention keeps a point.

    Reports points that were walked, and packs that went, as stage "gc".

    Raises what the tier raises, IntegrityError when anything that points need is missing or damaged (nothing was
    deleted then), PermanentError when another gc runs, TransientError when this run was paused for so long that its
    lease was taken away. Any number of runs at once, on any hosts, do no harm.
    """
    cancel = cancel or CancelToken()
    with ExitStack() as stack:
        lease = None
        if not dry_run:
            work = leases.making_room(repository.tier, repository.keyring, leases.GC, repository.clock)
            lease = stack.enter_context(work)
        own = stack.enter_context(with_fresh_index(repository))
        run = _Run(own, grace, kept, lease, progress, cancel)
        report = run.dry() if dry_run else run.wet()
    if not dry_run:
        repository.index.refresh()
    return report


@dataclass(slots=True)
class _Done:
    """What one run did, or would do: packs by id."""

    dead: list[bytes]
    marked: list[bytes]
    locked: dict[bytes, Locked]
    waiting: list[str]
    repacked: Rewritten
    index_parts: int = 0
    extended: int = 0


class _Run:
    """One run of gc; one thread. Without a lease it only looks."""

    def __init__(
        self,
        repository: Repository,
        grace: float,
        kept: Needed,
        lease: leases.HeldLease | None,
        progress: ProgressSink,
        cancel: CancelToken,
    ) -> None:
        self._repository = repository
        self._tier = repository.tier
        self._keyring = repository.keyring
        self._grace = grace
        self._kept = kept
        self._lease = lease
        self._progress = progress
        self._cancel = cancel

    def dry(self) -> GcReport:
        """What `wet` would do now."""
        found = self._look()
        due, waiting = self._due(found)
        live, notes = self._mostly_dead(found)
        repacked = Rewritten(tuple(each.pack for each in live), (), sum(each.bytes for each in live), notes)
        dead = self._dead(found, due)
        locked = self._locked(found, dead)
        parts = len(index_parts.plan(self._repository, self._unneeded(found, due)))
        return self._report(found, _Done(dead, self._new_garbage(found), locked, waiting, repacked, parts))

    def wet(self) -> GcReport:
        """Delete what is due, mark what is new, repack what is mostly dead."""
        found = self._look()
        due, waiting = self._due(found)
        self._keep_unreplaced(found, due, waiting)
        dead = self._dead(found, due)
        parts = index_parts.rewrite(self._repository, self._unneeded(found, due), self._check, merge=False)
        locked = self._locked(found, dead)
        for pack in dead:
            self._check()
            if pack not in locked:
                self._delete(found, pack, locked)
            self._progress("gc", 1)
        for name, mark in due.items():
            self._check()
            if locked.keys().isdisjoint(mark.packs()):
                self._drop_mark(name)
        parts += index_parts.rewrite(self._repository, (), self._check)  # what went made room for it
        new = self._new_garbage(found)
        marks.write(self._tier, self._keyring, self._repository.clock(), [(found.packs[p][0], p) for p in new])
        for key in found.evidence:
            self._check()
            with suppress(NotFoundError):
                self._tier.delete(key)
        unfinished = self._tier.clear_unfinished(max(self._grace, UNFINISHED_LEAST))
        found.notes.extend(staging.remove(self._tier.staging_dir(), found.left))
        found.notes.extend(f"half-written {name} of a writer that died is removed" for name in unfinished)
        extended = lock.extend(self._repository, *self._live(found), self._check)
        return self._report(found, _Done(dead, new, locked, waiting, self._repack(found), parts, extended))

    def _locked(self, found: _Found, dead: list[bytes]) -> dict[bytes, Locked]:
        keys = {pack_key(found.packs[pack][0], pack): pack for pack in dead}
        sizes = {key: found.packs[pack][1] for key, pack in keys.items()}
        held = lock.held(self._repository, sizes, self._repository.clock())
        return {keys[key]: each for key, each in held.items()}

    def _delete(self, found: _Found, pack: bytes, locked: dict[bytes, Locked]) -> None:
        kind, size = found.packs[pack]
        key = pack_key(kind, pack)
        try:
            self._tier.delete(key)
        except NotFoundError:
            pass
        except LockedError as error:  # by the place's own clock, or by a lock that `lock:` does not tell of
            found.notes.append(f"left until a later run: {error.message}")
            locked[pack] = Locked(key, size, self._tier.name, self._repository.clock())

    def _live(self, found: _Found) -> tuple[list[str], dict[str, float]]:
        """The keys of all packs that points need, and until when each point is kept, by its key."""
        packs = [pack_key(found.packs[pack][0], pack) for pack in found.needed & found.packs.keys()]
        return packs, {layout.point_key(point.id): self._kept(point) for point in found.points}

    def _keep_unreplaced(self, found: _Found, due: dict[str, Mark], waiting: list[str]) -> None:
        """Take marks out of `due` that name a pack whose objects have no other copy that reads well now."""
        dead = self._dead(found, due)
        relieved = {pack: found.reach.relieved[pack] for pack in dead if pack in found.reach.relieved}
        reasons = rewrite.unreadable_copies(self._repository, relieved, self._check)
        for name, mark in list(due.items()):
            problems = [reasons[pack] for pack in mark.packs() if pack in reasons]
            if problems:
                del due[name]
                waiting.append(f"{len(mark.packs())} packs: what replaces them cannot be read: {problems[0]}")

    def _mostly_dead(self, found: _Found) -> tuple[list[Live], tuple[str, ...]]:
        """Packs less than half of which is needed, and that would free a block at least."""
        stored = self._repository.index.stored_bytes()
        marked = found.marked
        worth = [
            live
            for pack, live in sorted(found.reach.live.items())
            if pack not in marked and live.bytes < stored[pack] // 2 and stored[pack] - live.bytes >= layout.PACK_BLOCK
        ]
        return rewrite.openable(self._repository, worth)

    def _repack(self, found: _Found) -> Rewritten:
        live, notes = self._mostly_dead(found)
        done = Rewritten(notes=notes)
        with ThreadPoolExecutor(thread_name_prefix="repack") as pool:
            rewriter = rewrite.Rewriter(self._repository, pool, self._check, self._progress)
            for part in rewrite.rounds(live):
                done += rewriter.round(part)
        return done

    def _check(self) -> None:
        """Before each deletion: nobody asked to stop, and the lease is still ours."""
        self._cancel.check()
        if self._lease is not None:
            self._lease.check()

    def _drop_mark(self, name: str) -> None:
        with suppress(NotFoundError):
            self._tier.delete(layout.mark_key(name))

    # looking

    def _look(self) -> _Found:
        repository = self._repository
        notes: list[str] = []
        names = marks.names_of(self._tier)
        others = self._others()
        found_marks = self._read_marks(names, notes)
        packs = self._packs()
        proofs = evidence.names(self._tier)  # before the points: of each that is seen, the point was there
        repository.index.refresh(writing=self._lease is not None)
        indexed = {pack.id for pack in repository.index.packs()}
        pinned = pins.pinned(repository)
        points = repository.points()
        there = {point.id for point in points}
        pins.refuse_lost(repository, pinned - there)
        if indexed and not points:  # prune leaves every VM a point, so this was not its work
            raise PermanentError(
                f"{self._tier!r} has no restore point, but {len(indexed)} packs that points were made with: "
                "nothing is deleted",
                hint="is a part of the tier not mounted? If there truly is none: gc goes on after the next backup",
            )
        marked = {pack for mark in found_marks.values() for pack in mark.packs()}
        reach = Reach(repository, marked, self._progress, self._cancel)
        for point in points:
            reach.add(point)
        lost = self._lost(packs, reach.packs)
        orphans = [each.key for each in proofs if each.point not in there]
        if orphans:
            notes.append(f"evidence about points that are gone: {len(orphans)} records")
        return _Found(
            found_marks, others, packs, points, reach, indexed, lost, orphans, self._left(others, notes), notes
        )

    def _others(self) -> list[FoundLease]:
        now = self._repository.clock()
        if self._lease is None:
            live = [lease for lease in leases.found(self._tier, self._keyring) if not lease.stale(now)]
        else:
            live = leases.remove_stale(self._tier, self._keyring, now)
        others = [lease for lease in live if self._lease is None or lease.id != self._lease.id]
        leases.refuse_second(others)
        return others

    def _read_marks(self, names: list[str], notes: list[str]) -> dict[str, Mark]:
        """The marks; a damaged one is removed, as only a gc that has read it could act on it, and none runs."""
        found = {}
        for name in names:
            try:
                found.update(marks.read(self._tier, self._keyring, [name]))
            except IntegrityError as error:
                notes.append(f"a mark that cannot be read is dropped, its packs are marked anew: {error.message}")
                if self._lease is not None:
                    self._check()
                    self._drop_mark(name)
        return found

    def _packs(self) -> dict[bytes, tuple[int, int]]:
        """Kind and size of every pack that is there."""
        found = {}
        for kind, prefix in ((KIND_DATA, layout.DATA), (KIND_META, layout.META)):
            for key, size in self._tier.list(prefix):
                self._cancel.check()
                found[pack_id(kind, key)] = (kind, size)
        return found

    def _left(self, others: list[FoundLease], notes: list[str]) -> list[Left]:
        try:
            return staging.left_by_the_dead(self._repository, others, self._grace)
        except (OSError, PermanentError) as error:  # a read-only tier
            notes.append(f"what writers that died left in staging was not looked for: {error}")
            return []

    def _lost(self, packs: dict[bytes, tuple[int, int]], needed: set[bytes]) -> set[bytes]:
        """Packs that the index names and that are not there, also not since the listing. IntegrityError for one that
        is needed: nothing may be deleted then. The others go from the index, so that nobody refers to them.
        """
        missing = [p for p in self._repository.index.packs() if p.id not in packs and not self._tier.exists(p.key)]
        for pack in missing:
            if pack.id in needed:
                raise IntegrityError(
                    f"pack {pack.key}, which restore points need, is missing: nothing is deleted",
                    hint="is a part of the tier not mounted? Else `vmcellar verify --all` names what is lost",
                )
        return {pack.id for pack in missing}

    # deciding

    def _due(self, found: _Found) -> tuple[dict[str, Mark], list[str]]:
        """The marks to work off now, and for each of the others why not."""
        due, waiting = {}, []
        for name, mark in found.marks.items():
            reason = self._not_yet(name, mark, found.leases)
            if reason:
                waiting.append(f"{len(mark.packs())} packs: {reason}")
            else:
                due[name] = mark
        return due, waiting

    def _not_yet(self, name: str, mark: Mark, others: list[FoundLease]) -> str:
        now = self._repository.clock()
        if mark.time > now + leases.SKEW:
            return "marked in the future: is a clock wrong?"
        if mark.time + self._grace > now:
            return f"marked {now - mark.time:.0f} s ago, kept for {self._grace:.0f} s"
        for other in others:
            if name not in (other.newest.known or ()):
                return f"{other.newest.what} on {other.newest.host} began before they were marked"
        return ""

    def _unneeded(self, found: _Found, due: dict[str, Mark]) -> set[bytes]:
        """What goes from the index."""
        return {pack for mark in due.values() for pack in mark.packs()} - found.needed | found.lost

    def _dead(self, found: _Found, due: dict[str, Mark]) -> list[bytes]:
        named = {pack for mark in due.values() for pack in mark.packs()}
        return sorted(named & found.packs.keys() - found.needed)

    def _new_garbage(self, found: _Found) -> list[bytes]:
        """Packs to mark: not needed, not marked. While a backup runs, only those that the index names: it places first
        and names later.
        """
        new = found.packs.keys() - found.needed - found.marked
        if any(other.newest.what.startswith(_BACKUP) for other in found.leases):
            new &= found.indexed
        return sorted(new)

    def _report(self, found: _Found, done: _Done) -> GcReport:
        def keys(packs: list[bytes]) -> tuple[str, ...]:
            return tuple(pack_key(found.packs[pack][0], pack) for pack in packs)

        def size(packs: Iterable[bytes]) -> int:
            return sum(found.packs[pack][1] for pack in packs)

        gone = [pack for pack in done.dead if pack not in done.locked]
        return GcReport(
            dry_run=self._lease is None,
            points=len(found.points),
            packs=len(found.packs),
            bytes=size(found.packs),
            needed=len(found.needed),
            marked=keys(done.marked),
            marked_bytes=size(done.marked),
            deleted=keys(gone),
            deleted_bytes=size(gone),
            locked=tuple(done.locked.values()),
            locked_bytes=size(done.locked),
            extended=done.extended,
            repacked=tuple(pack.key for pack in done.repacked.old),
            repacked_bytes=sum(pack.size for pack in done.repacked.old),
            repacked_live=done.repacked.live,
            index_parts=done.index_parts,
            staging=tuple(left.name for left in found.left),
            staging_bytes=sum(left.bytes for left in found.left),
            waiting=tuple(done.waiting),
            notes=(*found.notes, *done.repacked.notes),
        )
