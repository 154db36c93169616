"""Several tiers as one: packs lie on any of them, all else on the hot one.

Where a pack lies is what the tiers say when they are asked; nothing is written down, so nothing can be wrong. A pack is
moved by copying it first and deleting it last (vmcellar/upkeep/rebalance.py), so whoever looks at all tiers, and once
more when none has it, finds it.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from vmcellar.config.prices import Speed
from vmcellar.errors import CancelledError, VmcellarError
from vmcellar.tiers.base import Archive, ArchiveState, HasReserve, NotFoundError, Tier, TierReader, check_key

PACKS = "data/"
"""What may lie on any tier; everything else is small, and needed to plan a restore (pitfall 24)."""

_REMEMBERED = 1 << 16
_REQUESTS_AT_ONCE = 16
_GIVE_UP_SECONDS = 30.0
"""For so long a tier that could not be opened is not tried again: each try may take a minute of patience."""

T = TypeVar("T")


class _Other:
    """A tier that is opened when it is first needed. Any thread."""

    def __init__(self, opener: Callable[[], Tier]) -> None:
        self._opener = opener
        self._lock = threading.Lock()
        self._tier: Tier | None = None
        self._failed: tuple[float, VmcellarError] | None = None

    def tier(self) -> Tier:
        """The open tier; raises what opening it raised, also for a while after."""
        with self._lock:
            if self._tier is None:
                if self._failed and time.monotonic() < self._failed[0] + _GIVE_UP_SECONDS:
                    raise self._failed[1]
                try:
                    self._tier = self._opener()
                except VmcellarError as error:
                    self._failed = time.monotonic(), error
                    raise
            return self._tier


class CellarTier:
    """The tier `hot`, and others behind it in which packs may lie; a `Tier`, and a `Copies`.

    - New packs are written to hot; `delete` of a pack deletes every copy of it.
    - A pack is read from the first tier that has it, in the order given; a copy that cannot be read (gone, cut short, a
      tier that does not answer) gives way to another.
    - A pack is missing only when every tier answered and none has it; else the error of one that did not is raised.
    - A listing of packs is the union of all tiers, or an error. While packs are moved, one that is on its way may be
      missed, so who deletes by a listing keeps moves away by a lease.
    """

    kind = "cellar"

    def __init__(self, hot: Tier, others: Mapping[str, Callable[[], Tier]]) -> None:
        """`others` by name, nearest first; each is opened when it is first needed, and raises then."""
        self.name = hot.name
        self.hot = hot
        self._others = {name: _Other(opener) for name, opener in others.items()}
        self._places: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"{self.hot!r} with {', '.join(self._others)}"

    @property
    def names(self) -> tuple[str, ...]:
        """Of all tiers, hot first."""
        return (self.name, *self._others)

    def tier_named(self, name: str) -> Tier:
        """One of the tiers; raises what opening it raises."""
        return self.hot if name == self.name else self._others[name].tier()

    def _first(self, key: str, ask: Callable[[Tier], T]) -> T:
        """What the first tier says that has the object."""
        if not key.startswith(PACKS):
            return ask(self.hot)
        trouble: dict[str, VmcellarError] = {}
        missing: NotFoundError | None = None
        for name in self._order(key):
            if name in trouble:
                continue
            try:
                found = ask(self.tier_named(name))
            except NotFoundError as error:
                missing = missing or error
            except CancelledError:
                raise
            except VmcellarError as error:
                trouble[name] = error
            else:
                self._remember(key, name)
                return found
        raise next(iter(trouble.values()), None) or missing or AssertionError(key)

    def _order(self, key: str) -> Iterator[str]:
        """Where it was last, then everywhere, then once more: it may have been moved to where we had looked already."""
        with self._lock:
            known = self._places.pop(key, None)
        if known is not None:
            yield known
        yield from self.names
        yield from self.names

    def _remember(self, key: str, name: str) -> None:
        if name != self.name:
            with self._lock:
                self._places[key] = name
                while len(self._places) > _REMEMBERED:
                    self._places.popitem(last=False)

    def place_of(self, key: str) -> str:
        """The name of the tier that had the pack when it was last read; hot if nothing is known."""
        with self._lock:
            return self._places.get(key, self.name)

    def forget(self, key: str) -> None:
        """Look for the pack anew when it is read next, nearest tier first: it was copied."""
        with self._lock:
            self._places.pop(key, None)

    def copies(self, key: str) -> Sequence[Tier]:
        """See Copies."""
        found = []
        for name in self.names if key.startswith(PACKS) else (self.name,):
            try:
                tier = self.tier_named(name)
                if tier.exists(key):
                    found.append(tier)
            except CancelledError:
                raise
            except VmcellarError:
                continue
        return found

    def thaw_state(self, keys: Iterable[str]) -> Mapping[str, ArchiveState]:
        """See Archive: that of the copy which can be read soonest."""
        wanted = set(keys)
        best: dict[str, ArchiveState] = {}
        trouble: VmcellarError | None = None
        for name in self.names:
            asked = sorted(key for key in wanted if key not in best or not best[key].reads)
            try:
                found = _states(self.tier_named(name), asked)
            except CancelledError:
                raise
            except VmcellarError as error:
                trouble = trouble or error
                continue
            best.update({key: s for key, s in found.items() if key not in best or _rank(s) < _rank(best[key])})
        for key in sorted(wanted - best.keys()):
            raise trouble or NotFoundError(f"{self!r}: {key}: there is no such object")
        return best

    def thaw(self, keys: Iterable[str], days: int, speed: Speed) -> None:
        """See Archive: of the copy that `thaw_state` tells of."""
        by_tier: dict[str, set[str]] = {}
        for key, state in self.thaw_state(keys).items():
            if state.state != "readable":
                by_tier.setdefault(state.tier, set()).add(key)
        for name, frozen in by_tier.items():
            tier = self.tier_named(name)
            if isinstance(tier, Archive):
                tier.thaw(sorted(frozen), days, speed)

    def staging_dir(self) -> Path:
        """See Tier.staging_dir: that of hot."""
        return self.hot.staging_dir()

    def adopt(self, path: Path, key: str) -> None:
        """See Tier.adopt. That no other tier has the key is not asked: packs have random names of 128 bits, and a
        backup goes on while a tier is away.
        """
        self.hot.adopt(path, key)

    def put(self, key: str, data: bytes) -> None:
        """See Tier.put, and `adopt`."""
        self.hot.put(key, data)

    def making_room(self) -> AbstractContextManager[None]:
        """See HasReserve: that of hot, where all is written."""
        return self.hot.making_room() if isinstance(self.hot, HasReserve) else nullcontext()

    def get(self, key: str) -> bytes:
        """See Tier.get."""
        return self._first(check_key(key), lambda tier: tier.get(key))

    def read(self, key: str, offset: int, length: int) -> bytes:
        """See Tier.read."""
        return self._first(check_key(key), lambda tier: tier.read(key, offset, length))

    def open(self, key: str) -> TierReader:
        """See Tier.open."""
        name, reader = self._first(check_key(key), lambda tier: (tier.name, tier.open(key)))
        return _CellarReader(self, key, name, reader) if key.startswith(PACKS) else reader

    def size(self, key: str) -> int:
        """See Tier.size: of the first copy."""
        return self._first(check_key(key), lambda tier: tier.size(key))

    def exists(self, key: str) -> bool:
        """See Tier.exists."""
        try:
            self.size(key)
        except NotFoundError:
            return False
        return True

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """See Tier.list. Of a pack with several copies, the size of the first is told."""
        if not prefix.startswith(PACKS):
            yield from self.hot.list(prefix)
            return
        last = ""
        every = [self.tier_named(name).list(prefix) for name in self.names]
        for key, size in heapq.merge(*every, key=itemgetter(0)):  # stable: hot's come first
            if key != last:
                yield key, size
            last = key

    def delete(self, key: str) -> None:
        """See Tier.delete: every copy of a pack. Nothing goes unless every tier answers."""
        if not check_key(key).startswith(PACKS):
            self.hot.delete(key)
            return
        holders = [tier for tier in map(self.tier_named, self.names) if tier.exists(key)]
        if not holders:
            self.hot.delete(key)  # says that there is none
        for tier in reversed(holders):
            tier.delete(key)

    def free_bytes(self) -> int | None:
        """See Tier.free_bytes: of hot, where new packs go."""
        return self.hot.free_bytes()

    def describe(self) -> str:
        """See Tier.describe."""
        return f"{self.hot.describe()}, with {', '.join(self._others)}"

    def clear_unfinished(self, older_than: float) -> Sequence[str]:
        """See Tier.clear_unfinished: on every tier."""
        cleared: list[str] = []
        for name in self.names:
            cleared += self.tier_named(name).clear_unfinished(older_than)
        return cleared


def place_of(tier: Tier, key: str) -> str:
    """The name of the tier from which an object was read last."""
    return tier.place_of(key) if isinstance(tier, CellarTier) else tier.name


def _states(tier: Tier, keys: Iterable[str]) -> Mapping[str, ArchiveState]:
    """Of those that the tier has; one that needs no thaw says readable."""
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE, thread_name_prefix="states") as pool:
        asked = list(keys)
        sizes = dict(zip(asked, pool.map(partial(_size, tier), asked), strict=True))
    there = {key: size for key, size in sizes.items() if size is not None}
    if isinstance(tier, Archive):
        return tier.thaw_state(there)
    return {key: ArchiveState(key, size, tier.name, "readable") for key, size in there.items()}


def _size(tier: Tier, key: str) -> int | None:
    try:
        return tier.size(key)
    except NotFoundError:
        return None


def _rank(state: ArchiveState) -> int:
    return ("readable", "thawed", "thawing", "archived").index(state.state)


class _CellarReader:
    """A pack that is open on one tier, and goes on with another copy when that cannot be read any more."""

    def __init__(self, cellar: CellarTier, key: str, name: str, reader: TierReader) -> None:
        self._cellar, self._key = cellar, key
        self._current = name, reader
        self._opened = [reader]
        self._lock = threading.Lock()
        self.size = reader.size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See TierReader.read_into."""
        name, reader = self._current
        try:
            reader.read_into(offset, buffer)
        except CancelledError:
            raise
        except VmcellarError:
            if not self._read_elsewhere(name, offset, buffer):
                raise

    def _read_elsewhere(self, failed: str, offset: int, buffer: memoryview) -> bool:
        for name in self._cellar.names:
            if name == failed:
                continue
            try:
                reader = self._cellar.tier_named(name).open(self._key)
                with self._lock:
                    self._opened.append(reader)
                reader.read_into(offset, buffer)
            except CancelledError:
                raise
            except VmcellarError:
                continue
            self._current = name, reader
            return True
        return False

    def close(self) -> None:
        """See TierReader.close."""
        with self._lock:
            for reader in self._opened:
                reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
