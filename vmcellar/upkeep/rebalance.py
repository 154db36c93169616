"""rebalance: put every pack where the rules say, and keep a mirror of all else on every tier.

A pack is moved by copying it, reading the copy back, and only then deleting it where it was. Where packs lie is what
the tiers list, so a run that died is gone on with by the next one, and a copy that is whole already is not made again.
Before a copy goes, every copy that stays was read in this run and has the same bytes. Runs alone among works that
delete (a lease of its own kind); backups, prunes and restores may run beside it. Before anything is moved, packs of
which most has cooled are taken apart (vmcellar/upkeep/separate.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from vmcellar.errors import CancelledError, IntegrityError
from vmcellar.policy.placement import Held, Move, Site, decide
from vmcellar.progress import CancelToken, ProgressSink, no_progress
from vmcellar.repository import drops, leases, uses, withdrawn
from vmcellar.repository.whole import check_object
from vmcellar.tiers.base import ArchivedError, LockedError, NotFoundError
from vmcellar.tiers.mark import refuse_same_place
from vmcellar.upkeep import separate
from vmcellar.upkeep.carry import Carrier, Pace
from vmcellar.upkeep.fresh import with_fresh_index
from vmcellar.upkeep.limits import Limits
from vmcellar.upkeep.lock import unlocked
from vmcellar.upkeep.mirror import Mirror, Mirrored
from vmcellar.upkeep.survey import Mixed, Needed, Survey, cellar_of, for_ever, survey

if TYPE_CHECKING:
    from vmcellar.repository.repository import Repository
    from vmcellar.tiers.base import Tier
    from vmcellar.tiers.cellar import CellarTier

ID_DIGITS = 8


@dataclass(frozen=True, slots=True)
class Rules:
    """Where packs should lie: the tiers in order, on how many each pack lies, until when points are kept, how fast and
    when packs may be moved, and whether a restore makes packs young again.
    """

    sites: tuple[Site, ...]
    copies: int = 1
    needed: Needed = for_ever
    limits: Limits = field(default_factory=Limits)
    use: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """A pack that was left where it was, and why."""

    key: str
    why: str


@dataclass(frozen=True, slots=True)
class RebalanceReport:
    """What was done, or would be if `dry_run`; sizes in bytes.

    `moves` were done; `held` packs cannot be moved as they are; `failed` ones were not, with the reason. `lost` is as
    in Survey. `bytes` is the size of all copies that were made. `separated` are
    keys of packs of which what cooled lies in packs of its own now (see separate.py); what a dry run says of moves is
    without these.
    """

    dry_run: bool
    points: int
    packs: int
    moves: tuple[Move, ...]
    bytes: int
    held: tuple[Held, ...]
    failed: tuple[Failed, ...]
    lost: tuple[str, ...]
    mirrors: tuple[Mirrored, ...]
    separated: tuple[str, ...] = ()
    separated_bytes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every pack that points need is there, and all that should be done was."""
        return not (self.failed or self.lost or any(mirror.kept for mirror in self.mirrors))


def rebalance(
    repository: Repository,
    rules: Rules,
    *,
    at_once: int = 4,
    rate: int | None = None,
    dry_run: bool = False,
    progress: ProgressSink = no_progress,
    cancel: CancelToken | None = None,
) -> RebalanceReport:
    """One run; `at_once` packs at a time, at most `rate` bytes per second in all.

    Reports points that were walked as stage "gc" and copied bytes as "move". Raises what the tiers raise (one that is
    away or full ends the run), PermanentError while gc or another work of its kind runs, CancelledError when stopped:
    what was moved stays moved. A pack that is damaged, archived or gone is in the report, and the others are moved.
    """
    cancel = cancel or CancelToken()
    cellar = cellar_of(repository)
    with ExitStack() as stack:
        lease = None
        if not dry_run:
            work = leases.holding(repository.tier, repository.keyring, leases.MOVE, repository.clock)
            lease = stack.enter_context(work)
            others = leases.remove_stale(repository.tier, repository.keyring, repository.clock())
            leases.refuse_second(other for other in others if other.id != lease.id)
            refuse_same_place([cellar.tier_named(name) for name in cellar.names])
        dropped = drops.found(repository.tier, repository.keyring, repository.clock(), clear=lease is not None)
        own = stack.enter_context(with_fresh_index(repository))
        now = repository.clock()
        since = now - rules.sites[0].until
        used = uses.last(repository.tier) if rules.use else {}
        look = partial(survey, own, needed=rules.needed, used=used, strict=True, progress=progress, cancel=cancel)
        found = look(young_since=since)
        stop = CancelToken(cancel)
        carrier = Carrier(f"moves-{repository.id.hex()[:ID_DIGITS]}", Pace(rate), progress, stop, rules.limits)
        run = _Run(own, cellar, carrier, lease, stop, rules.limits)
        separated, notes = run.separate(found.mixed, progress)
        if separated and not dry_run:
            found = look()
        if not dry_run:
            there = {point.id for point in own.readable_points()}
            uses.clear(repository.tier, there)
            withdrawn.clear(repository.tier, max(there, default=""))
        mirrors = run.mirrors(found)
        moves, held = _decided(found, rules, now, cellar, dropped)
        moves, locked = unlocked(moves, cellar, rules.copies, now)
        moves, closed = run.within_windows(moves)
        done, failed = (moves, []) if dry_run else run.moves(moves, at_once, closed)
    if separated and not dry_run:
        repository.index.refresh()
    return RebalanceReport(
        dry_run=dry_run,
        points=found.points,
        packs=len(found.packs),
        moves=tuple(done),
        bytes=sum(move.size * len(move.copy) for move in done),
        held=(*held, *locked, *closed),
        failed=tuple(failed),
        lost=found.lost,
        mirrors=mirrors,
        separated=tuple(each.live.pack.key for each in separated),
        separated_bytes=sum(each.live.bytes for each in separated),
        notes=notes,
    )


def _decided(
    found: Survey, rules: Rules, now: float, cellar: CellarTier, dropped: Mapping[str, str]
) -> tuple[list[Move], list[Held]]:
    """Missing copies first, then what frees the nearest tiers. What is thawed just now is moved like all else; what
    somebody may be deleting a copy of stays as it is.
    """
    verdicts = {pack: decide(pack, rules.sites, rules.copies, now) for pack in found.packs}
    frozen = {pack for pack, verdict in verdicts.items() if isinstance(verdict, Held)}
    if frozen:
        readable = tuple(replace(site, thaws=False) for site in rules.sites)
        states = cellar.thaw_state(pack.key for pack in frozen)
        thawed = [pack for pack in frozen if states[pack.key].reads]
        verdicts.update({pack: decide(pack, readable, rules.copies, now) for pack in thawed})
    moves = [verdict for verdict in verdicts.values() if isinstance(verdict, Move)]
    moves.sort(key=lambda move: (bool(move.drop), not move.copy, move.key))
    held = [verdict for verdict in verdicts.values() if isinstance(verdict, Held)]
    held += [Held(move.key, move.size, move.tiers, dropped[move.key]) for move in moves if move.key in dropped]
    return [move for move in moves if move.key not in dropped], held


class _Run:
    """The changes of one run. Without a lease it only looks."""

    def __init__(
        self,
        repository: Repository,
        cellar: CellarTier,
        carrier: Carrier,
        lease: leases.HeldLease | None,
        cancel: CancelToken,
        limits: Limits,
    ) -> None:
        self._repository = repository
        self._cellar = cellar
        self._carrier = carrier
        self._lease = lease
        self._cancel = cancel
        self._limits = limits

    def _closed(self, move: Move) -> Held | None:
        return self._limits.closed(move, self._repository.clock())

    def within_windows(self, moves: Iterable[Move]) -> tuple[list[Move], list[Held]]:
        """Those that may begin now, and those that have to wait."""
        verdicts = [(move, self._closed(move)) for move in moves]
        return [move for move, held in verdicts if held is None], [held for _, held in verdicts if held is not None]

    def _check(self) -> None:
        """Before each change: nobody asked to stop, and the lease is still ours."""
        self._cancel.check()
        if self._lease is not None:
            self._lease.check()

    def mirrors(self, found: Survey) -> tuple[Mirrored, ...]:
        """Bring all mirrors up to date."""
        hot, keyring, own = self._cellar.hot, self._repository.keyring, self._repository.id
        check = partial(check_object, hot, keyring, own)
        mirror = Mirror(hot, found, self._carrier, self._check, check, partial(withdrawn.was_taken_back, hot, keyring))
        others = [self._cellar.tier_named(name) for name in self._cellar.names[1:]]
        return tuple(mirror.update(tier, dry_run=self._lease is None) for tier in others)

    def separate(self, mixed: Sequence[Mixed], progress: ProgressSink) -> tuple[list[Mixed], tuple[str, ...]]:
        """Rewrite packs that mostly cooled; which, and what there is to say."""
        wanted, notes = separate.worth(self._repository, mixed)
        if self._lease is None or not wanted:
            return wanted, notes
        done = separate.separate(self._repository, wanted, self._check, progress, self._pace_hot)
        old = {pack.id for pack in done.old}
        return [each for each in wanted if each.live.pack.id in old], (*notes, *done.notes)

    def _pace_hot(self, count: int) -> None:
        """What is taken apart lies on hot, and so do the new packs."""
        self._limits.take(self._cellar.name, count, self._cancel)

    def moves(self, moves: Iterable[Move], at_once: int, closed: list[Held]) -> tuple[list[Move], list[Failed]]:
        """Do them, several at a time; those whose window ends before their turn are put to `closed`. An error that is
        not about one pack alone ends it when all have stopped.
        """
        self._carrier.clear(self._cellar.hot)
        done: list[Move] = []
        failed: list[Failed] = []
        with ThreadPoolExecutor(at_once, thread_name_prefix="move") as pool:
            running = [(move, pool.submit(self._move, move)) for move in moves]
            try:
                for move, future in running:
                    reason = future.result()
                    if isinstance(reason, Held):
                        closed.append(reason)
                    elif reason:
                        failed.append(Failed(move.key, reason))
                    else:
                        done.append(move)
            except BaseException:
                self._cancel.cancel()
                pool.shutdown(cancel_futures=True)
                raise
        return done, failed

    def _move(self, move: Move) -> str | Held:
        """Do one; empty, or why this pack stays."""
        self._check()
        if held := self._closed(move):
            return held
        try:
            source, *others = (self._cellar.tier_named(name) for name in move.tiers)
            digest = self._common_digest(move, source, others) if move.drop and others else ""
            for name in move.copy:
                self._check()
                copied = self._carrier.copy(move.key, source, self._cellar.tier_named(name))
                if digest not in ("", copied):
                    raise IntegrityError(f"{source!r}: {move.key} reads differently each time")
            if move.drop:
                self._drop(move)
        except CancelledError:
            raise
        except (IntegrityError, NotFoundError, ArchivedError, LockedError) as error:
            return str(error)
        return ""

    def _drop(self, move: Move) -> None:
        repository = self._repository
        with drops.announced(repository.tier, repository.keyring, move.key, repository.clock):
            for name in move.drop:
                self._check()
                self._cellar.tier_named(name).delete(move.key)

    def _common_digest(self, move: Move, source: Tier, others: Sequence[Tier]) -> str:
        """The digest of all copies that there are; IntegrityError when they differ: the damaged one may be that which
        would stay.
        """
        digest = self._carrier.digest(move.key, source)
        for other in others:
            if not self._carrier.holds(move.key, other, digest, source.size(move.key)):
                raise IntegrityError(
                    f"{move.key} is not the same on {source!r} and {other!r}: both stay",
                    hint="type `vmcellar verify --all --deep`, and `--repair` it from the whole copy",
                )
        return digest
