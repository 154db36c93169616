"""Random work of several hosts, with pauses, wrong clocks, and deaths at any durable step.

Backups, restores, prunes, pins, gcs (with repacking, and index parts put together), consolidations, and recoveries:
lost index parts made again, damage mended from a copy, by whichever host, until one of them lives to its end. Clocks
are wrong by up to five minutes either way. After every step each point that is there reads as its model says.
VMCELLAR_MACHINE=N plays N random games instead.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.repository.writing import read_disk
from tests.tiers.faulty import DiedError
from tests.upkeep.test_beside import PausedTier
from tests.upkeep.world import DAY, HOUR, PIECES, World
from vmcellar.config.jobs import KeepByAge
from vmcellar.errors import IntegrityError, PermanentError, TransientError, VmcellarError
from vmcellar.repository import guard, layout
from vmcellar.repository.guard import Guard
from vmcellar.repository.leases import SKEW
from vmcellar.repository.rebuild import rebuild_index
from vmcellar.repository.repair import RepairRequest, repair
from vmcellar.repository.repository import Repository
from vmcellar.repository.scrub import verify_all
from vmcellar.tiers.local import LocalTier
from vmcellar.upkeep import gc, pins, prune
from vmcellar.upkeep.consolidate import consolidate

VMS = st.sampled_from(["web", "db"])
CHANGES = st.dictionaries(st.integers(0, PIECES - 1), st.integers(0, 5), min_size=1, max_size=3)
HOSTS = st.sampled_from(["a", "b", "c"])
CLOCKS = st.fixed_dictionaries(dict.fromkeys("abc", st.sampled_from([-SKEW, 0.0, SKEW])))
DEATHS = st.one_of(st.none(), st.tuples(st.integers(1, 30), st.booleans()))
ATTEMPTS = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(1, 12), st.booleans()), max_size=2)
"""Hosts that die while they recover what is broken; another one comes after them."""
HOLDERS = st.sampled_from(["boot", "thaw"])
WHICH = st.integers(0, 99)
BESIDE = st.lists(st.sampled_from(["gc", "later", "prune", "backup", "consolidate"]), max_size=5)
LIVES = st.sampled_from(
    [
        [],
        ["gc", "later"],
        ["gc", "later", "gc"],
        ["backup", "prune", "gc", "later"],
        ["backup", "prune", "gc", "later", "gc"],
    ]
)
"""What becomes of what nobody seems to need, or of a point's parent, while its writer is paused."""


class Upkeep(RuleBasedStateMachine):
    """One world. A death leaves its lease behind, as a kill does; time passes, so that it goes stale."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="vmcellar-machine-"))
        self.pool = ThreadPoolExecutor(1)
        self.world = World.make(self.folder, self.pool)
        self.seen: set[str] = set()
        self.pinned: set[str] = set()
        self.held: set[tuple[str, str]] = set()
        self.allowed_to_go: set[str] = set()
        self.clocks: dict[str, float] = {}
        self.few = ExitStack()  # disks here are small, and points are few
        self.few.enter_context(patch("vmcellar.upkeep.consolidate.SMALL_MIN", 4))
        self.few.enter_context(patch("vmcellar.upkeep.index_parts.FEWEST", 3))

    def teardown(self) -> None:
        self.few.close()
        self.pool.shutdown()
        shutil.rmtree(self.folder)

    def run(
        self, host: str, death: tuple[int, bool] | None, work: Callable[[Repository], object], *, refresh: bool = True
    ) -> None:
        """Do `work` as one process of `host`, which may die at a durable step; refusals are no failures."""
        tier = self.world.faulty(*(death[:1] if death else (None,)), after=bool(death and death[1]))
        repository = self.world.host(host, tier, lambda: self.world.now + self.clocks.get(host, 0.0), refresh=refresh)
        try:
            work(repository)
        except (DiedError, PermanentError, TransientError):
            pass
        finally:
            repository.close()

    @initialize(clocks=CLOCKS)
    def first(self, clocks: dict[str, float]) -> None:
        self.clocks = clocks
        self.run("a", None, lambda host: self.world.back_up(host, {0: 1, 1: 2}))

    @rule(host=HOSTS, vm=VMS, changes=CHANGES, death=DEATHS, lease=st.booleans(), full=st.booleans())
    def back_up(
        self, host: str, vm: str, changes: dict[int, int], death: tuple[int, bool] | None, lease: bool, full: bool
    ) -> None:
        self.world.now += HOUR
        self.run(host, death, lambda repository: self._back_up(repository, vm, changes, lease=lease, full=full))

    @rule(vm=VMS, changes=CHANGES, lease=st.booleans(), beside=BESIDE, full=st.booleans())
    def back_up_paused(self, vm: str, changes: dict[int, int], lease: bool, beside: list[str], full: bool) -> None:
        """Between its last look at the disk and its commit, others work, for hours or days."""
        self.world.now += HOUR

        def others() -> None:
            for what in beside:
                self._beside(what)

        self.run("a", None, lambda host: self._back_up(host, vm, changes, lease=lease, full=full, others=others))

    @rule(vm=VMS, changes=CHANGES, beside=LIVES, full=st.booleans())
    def back_up_killed_at_its_point(self, vm: str, changes: dict[int, int], beside: list[str], full: bool) -> None:
        """Others work between its last look and its point, then it is killed; its host settles that before all else."""
        self.world.now += HOUR
        tier = PausedTier(self.world.tier)

        def others() -> None:
            for what in beside:
                self._beside(what)

        def killed(_: Guard) -> None:
            raise DiedError

        tier.pause = others
        slow = self.world.host("a", tier, lambda: self.world.now + self.clocks["a"])
        with patch.object(Guard, "after_point", killed), suppress(DiedError, PermanentError, TransientError):
            self._back_up(slow, vm, changes, lease=True, full=full)
        slow.close()
        self.run("a", None, lambda host: self._settle(host, tier.point))

    def _settle(self, host: Repository, point: str) -> None:
        if point and host.tier.exists(layout.point_key(point)) and guard.doubt(host, host.point(point)):
            guard.withdraw(host, point)

    def _back_up(
        self, host: Repository, vm: str, changes: dict[int, int], *, lease: bool, full: bool,
        others: Callable[[], object] = lambda: None,
    ) -> None:  # fmt: skip
        own = host.points_of(vm)
        parent = own[-1] if own and not full else None
        try:
            self.world.back_up(host, changes, parent, lease=lease, vm=vm, before_commit=others)
        except IntegrityError as error:  # without a lease nothing tells why it is not there any more
            assert not lease, error
            assert "which the repository does not have" in error.message

    def _beside(self, what: str) -> None:
        if what == "later":
            self.world.now += DAY + HOUR
        elif what == "gc":
            self.run("b", None, gc.collect)
        elif what == "consolidate":
            self.run("c", None, consolidate)
        elif what == "prune":
            self.run("b", None, lambda host: self._prune(host, KeepByAge(last=1)))
        else:
            self.run("b", None, lambda host: self._back_up(host, "web", {3: 4}, lease=True, full=False))

    @rule(host=HOSTS, death=DEATHS, last=st.integers(1, 3), hourly=st.integers(0, 2))
    def prune(self, host: str, death: tuple[int, bool] | None, last: int, hourly: int) -> None:
        self.run(host, death, lambda repository: self._prune(repository, KeepByAge(last=last, hourly=hourly)))

    def _prune(self, host: Repository, rules: KeepByAge) -> None:
        points = host.points()
        plan = prune.plan(points, prune.rules_for_all(rules), pins=pins.pinned(host), now=self.world.now)
        self.allowed_to_go |= {decision.point.id for decision in plan if not decision.keep}
        prune.drop(host, plan)

    @rule(host=HOSTS)
    def pin(self, host: str) -> None:
        def first(repository: Repository) -> None:
            point = repository.points()[0]
            pins.pin(repository, point)
            self.pinned.add(point.id)

        self.run(host, None, first)

    @rule(host=HOSTS, death=DEATHS, holder=HOLDERS)
    def hold(self, host: str, death: tuple[int, bool] | None, holder: str) -> None:
        """Work that needs the oldest point; of one that dies as it begins nobody relies on what it left."""

        def oldest(repository: Repository) -> None:
            point = repository.points()[0]
            pins.hold(repository, point, holder, "it is needed")
            self.held.add((point.id, holder))

        self.run(host, death, oldest)

    @rule(host=HOSTS, death=DEATHS, holder=HOLDERS)
    def let_go(self, host: str, death: tuple[int, bool] | None, holder: str) -> None:
        """What others hold stays pinned, also if this one dies."""
        mine = {point for point, who in self.held if who == holder}
        self.held = {(point, who) for point, who in self.held if who != holder}

        def let_all_go(repository: Repository) -> None:
            for point in sorted(mine):
                pins.let_go(repository, point, holder)

        self.run(host, death, let_all_go)

    @rule(host=HOSTS, death=DEATHS, later=st.booleans())
    def collect(self, host: str, death: tuple[int, bool] | None, later: bool) -> None:
        self.world.now += 2 * DAY if later else HOUR
        self.run(host, death, gc.collect)

    @rule(host=HOSTS, death=DEATHS, later=st.booleans())
    def consolidate(self, host: str, death: tuple[int, bool] | None, later: bool) -> None:
        self.world.now += 2 * DAY if later else HOUR
        self.run(host, death, consolidate)

    def _recover(self, attempts: list[tuple[str, int, bool]], work: Callable[[Repository], object]) -> None:
        """Hosts that die at it, one after the other, and at last one that does not."""
        for host, step, after in attempts:
            self.world.now += HOUR  # leases of the dead have ended: until then who comes is told to wait
            self.run(host, (step, after), work, refresh=False)
        self.world.now += HOUR
        repository = self.world.host("a", clock=lambda: self.world.now + self.clocks["a"], refresh=False)
        try:
            work(repository)
        finally:
            repository.close()

    def _some(self, which: int, *prefixes: str) -> str:
        """An object that a game meets again when it is played again: names are random, the order is not."""
        keys = [key for prefix in prefixes for key in self.world.keys(prefix)]
        return sorted(keys, key=lambda key: (self.world.tier.path / key).stat().st_mtime_ns)[which % len(keys)]

    @rule(which=WHICH, attempts=ATTEMPTS, every=st.booleans())
    def lose_index_parts(self, which: int, attempts: list[tuple[str, int, bool]], every: bool) -> None:
        for key in self.world.keys(layout.INDEX) if every else [self._some(which, layout.INDEX)]:
            self.world.tier.delete(key)
        self._recover(attempts, self._rebuild)

    def _rebuild(self, host: Repository) -> None:
        assert rebuild_index(host).damaged == ()

    @rule(which=WHICH, where=st.floats(0, 0.999), attempts=ATTEMPTS, lost=st.booleans(), told=st.booleans())
    def damage(self, which: int, where: float, attempts: list[tuple[str, int, bool]], lost: bool, told: bool) -> None:
        """A needed object is damaged or gone, and comes back from a copy of before; perhaps a check had noted it."""
        shutil.rmtree(self.folder / "copy", ignore_errors=True)
        shutil.copytree(self.world.tier.path, self.folder / "copy")
        key = self._some(which, layout.DATA, layout.META, layout.INDEX, layout.POINTS)
        path = self.world.tier.path / key
        whole = path.read_bytes()
        path.unlink()
        if not lost:
            place = int(where * len(whole))
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        if told:
            self.run("c", None, lambda host: verify_all(host, deep=True), refresh=False)
        self._recover(attempts, lambda host: self._repair(host, key))
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(whole)  # of a pack that no point needs, which nobody mends

    def _repair(self, host: Repository, key: str) -> None:
        copy = LocalTier(self.folder / "copy")
        if key.startswith(layout.POINTS):
            repair(host, copy, RepairRequest(key.removeprefix(layout.POINTS)))
        report = repair(host, copy, RepairRequest(deep=True))
        assert report.after.ok, report

    @rule(beside=BESIDE)
    def restore_paused(self, beside: list[str]) -> None:
        """A restore during which others work: it reads right, or says that it cannot, and that only when its lease was
        over and its point was dropped.
        """
        self.run("a", None, lambda host: self._restore(host, beside))

    def _restore(self, host: Repository, beside: list[str]) -> None:
        point = host.points()[0]
        with host.reading("restore"):
            for what in beside:
                self._beside(what)
            try:
                assert read_disk(host, point) == self.world.model[point.id]
            except VmcellarError:
                assert "later" in beside
                assert not self.world.tier.exists(f"points/{point.id}")

    @invariant()
    def every_point_reads_as_its_model_says(self) -> None:
        shutil.rmtree(self.folder / "cache-checker", ignore_errors=True)
        there = {point.id for point in self.world.check()}
        gone = self.seen - there
        assert gone <= self.allowed_to_go
        assert not gone & (self.pinned | {point for point, _ in self.held})
        assert there
        self.seen |= there

    @invariant()
    def hosts_with_an_old_cache_read_it_too(self) -> None:
        repository = self.world.host("b")
        try:
            for point in repository.points():
                assert read_disk(repository, point) == self.world.model[point.id]
        except VmcellarError as error:
            raise AssertionError(error) from error
        finally:
            repository.close()


GAMES = int(os.environ.get("VMCELLAR_MACHINE", "0"))
Upkeep.TestCase.settings = settings(
    max_examples=GAMES or 25, stateful_step_count=12, deadline=None, derandomize=not GAMES, database=None
)
TestUpkeep = Upkeep.TestCase
