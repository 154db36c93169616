"""Leases: who works on the repository now, so that gc leaves alone what they rely on (section 12 of the format page).

A lease is a row of objects `leases/<id>-<number>`. Number 0 is written first, is never renewed, and is what everything
hangs on: whoever finds a lease stale removes number 0 before anything else, and a holder that does not find it knows
that its lease was taken away. Clocks only decide when a lease is called stale; that a holder which was paused for long
does no harm follows from the order of writes alone.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from vmcellar.boot import boot_id
from vmcellar.errors import IntegrityError, PermanentError, TransientError, VmcellarError
from vmcellar.repository import layout, marks
from vmcellar.repository.records import Instant, Pid, RecordKind
from vmcellar.tiers.base import HasReserve, NotFoundError

if TYPE_CHECKING:
    from vmcellar.crypto.base import Keyring
    from vmcellar.tiers.base import Tier

SECONDS = 900.0
"""How long a lease lasts without renewal; it is renewed at a third of it."""
SKEW = 300.0
"""How far two hosts' clocks may be apart: so long after its end a lease still counts."""

GC = "gc"
REBUILD = "rebuild-index"
REPAIR = "repair"
CONSOLIDATE = "consolidate"
MOVE = "tiers move"
"""Works of which one runs at a time, of all five."""

Clock = Callable[[], float]


class BusyError(PermanentError):
    """Another work of which one runs at a time is under way: it may take hours, so a retry in seconds is of no use."""


_log = logging.getLogger(__name__)
_DIGITS_MAX = 18


@checked(frozen=True, slots=True, config=ConfigDict(extra="forbid", strict=True))
class Lease:
    """Who holds it, for `what`, on which host and boot; times in seconds since the epoch, by the holder's clock.

    `known` are the marks of gc that were there when the lease began: of packs in these the holder makes no use. It is
    None in object 0, which is written before the holder has looked.
    """

    what: str
    host: str
    boot: str
    pid: Pid
    since: Instant
    expires: Instant
    known: tuple[str, ...] | None = None


@checked(frozen=True, slots=True)
class FoundLease:
    """A lease as it stands on the tier: `objects` are its numbers, `newest` what the last of them says."""

    id: str
    objects: tuple[int, ...]
    newest: Lease

    def stale(self, now: float) -> bool:
        """Whether it does not count any more: taken away, over for longer than clocks may differ, or of a process of
        this boot that has ended.
        """
        return 0 not in self.objects or self.newest.expires + SKEW < now or has_ended(self.newest.boot, self.newest.pid)


def has_ended(its_boot: str, pid: int) -> bool:
    """Whether a process has ended for sure: it was one of this boot, and there is none of its number."""
    if its_boot != boot():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's process, so there is one
        return False
    return False


def boot() -> str:
    """This boot of this kernel, and in which space of process numbers (containers have their own)."""
    return f"{boot_id()}/{Path('/proc/self/ns/pid').stat().st_ino}"


_KIND = RecordKind(layout.LEASES, layout.LEASE_MAGIC, layout.LEASE_SEAL, TypeAdapter(Lease))


class HeldLease:
    """A lease of this process. Any thread."""

    def __init__(self, tier: Tier, keyring: Keyring, what: str, clock: Clock = time.time) -> None:
        """Take it: two small durable objects. Raises what the tier raises; nothing is held then."""
        self.id = secrets.token_hex(layout.NAME_BYTES)
        self._tier, self._keyring, self._clock = tier, keyring, clock
        now = clock()
        self._lease = Lease(what, os.uname().nodename, boot(), os.getpid(), now, now + SECONDS)
        self._numbers = {0}  # of all objects that may be there: a write that failed may have left one
        self._lock = threading.Lock()
        self._write(0)
        try:
            self.known = frozenset(marks.names_of(tier))
            self._lease = replace(self._lease, known=tuple(sorted(self.known)))
            self._write(1)
        except VmcellarError:
            self.release()
            raise

    def _write(self, number: int) -> None:
        self._numbers.add(number)
        _KIND.write(self._tier, self._keyring, layout.lease_key(self.id, number), self._lease)

    def check(self) -> None:
        """TransientError when the lease was taken away because it was not renewed in time."""
        if not self._tier.exists(layout.lease_key(self.id, 0)):
            raise TransientError(
                f"the lease of this work ({self._lease.what}) was taken away: it had not been renewed for too long",
                hint="was the machine suspended, or its clock wrong? Run the command again",
            )

    def renew(self) -> None:
        """Make it last from now on again; TransientError when it was taken away.

        No number is written twice: a renewal whose answer was lost may have left its object, which would refuse the
        next one for ever.
        """
        with self._lock:
            self.check()
            self._lease = replace(self._lease, expires=self._clock() + SECONDS)
            before = sorted(self._numbers - {0})
            self._write(max(self._numbers) + 1)
            for number in before:
                self._delete(number)

    def release(self) -> None:
        """Let it go. What cannot be removed is stale soon; that is logged, never an error."""
        with self._lock:
            try:
                for number in sorted(self._numbers):
                    self._delete(number)
            except VmcellarError as error:
                _log.warning("lease %s could not be removed, and ends by itself: %s", self.id, error.message)

    def _delete(self, number: int) -> None:
        with suppress(NotFoundError):
            self._tier.delete(layout.lease_key(self.id, number))
        self._numbers.discard(number)


@contextmanager
def holding(tier: Tier, keyring: Keyring, what: str, clock: Clock = time.time) -> Iterator[HeldLease]:
    """Hold a lease while the block runs, renewed by a thread of its own."""
    lease = HeldLease(tier, keyring, what, clock)
    ended = threading.Event()
    thread = threading.Thread(target=_keep_alive, args=(lease, ended), name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        ended.set()
        thread.join()
        lease.release()


@contextmanager
def making_room(tier: Tier, keyring: Keyring, what: str, clock: Clock = time.time) -> Iterator[HeldLease]:
    """As `holding`, for a work that deletes: where the tier is full it may use the room that is reserved for it."""
    room = tier.making_room() if isinstance(tier, HasReserve) else nullcontext()
    with room, holding(tier, keyring, what, clock) as lease:
        yield lease


@contextmanager
def reading(tier: Tier, keyring: Keyring, what: str, clock: Clock = time.time) -> Iterator[None]:
    """As `holding`, for who only reads: a place that takes no lease (it is read-only, or full) is read without one."""
    with ExitStack() as stack:
        try:
            stack.enter_context(holding(tier, keyring, what, clock))
        except VmcellarError as error:
            _log.warning("%s goes on without a lease, so do not let a gc run meanwhile: %s", what, error.message)
        yield


def _keep_alive(lease: HeldLease, ended: threading.Event) -> None:
    while not ended.wait(SECONDS / 3):
        try:
            lease.renew()
        except VmcellarError as error:  # the next beat tries again; who writes asks `check` itself
            _log.warning("lease %s was not renewed: %s", lease.id, error.message)


def found(tier: Tier, keyring: Keyring) -> list[FoundLease]:
    """All leases on the tier, stale ones too, by id. IntegrityError names an object that is no lease or is damaged."""
    numbers: dict[str, list[int]] = {}
    for key, _ in tier.list(layout.LEASES):
        lease_id, number = _parse(key)
        numbers.setdefault(lease_id, []).append(number)
    result = []
    for lease_id, every in numbers.items():
        try:
            newest = _KIND.read(tier, keyring, layout.lease_key(lease_id, max(every)))
        except NotFoundError:  # renewed or released since the listing
            newest_again = _read_again(tier, keyring, lease_id)
            if newest_again is not None:
                result.append(newest_again)
            continue
        result.append(FoundLease(lease_id, tuple(sorted(every)), newest))
    return result


def _read_again(tier: Tier, keyring: Keyring, lease_id: str) -> FoundLease | None:
    """A lease whose newest object went while it was read; None when all of it has gone."""
    for _ in range(10):
        every = sorted(_parse(key)[1] for key, _ in tier.list(f"{layout.LEASES}{lease_id}-"))
        if not every:
            return None
        with suppress(NotFoundError):
            newest = _KIND.read(tier, keyring, layout.lease_key(lease_id, every[-1]))
            return FoundLease(lease_id, tuple(every), newest)
    raise TransientError(f"lease {lease_id} changes while it is read", hint="run the command again")


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX else 0


def _parse(key: str) -> tuple[str, int]:
    lease_id, _, number = key.removeprefix(layout.LEASES).rpartition("-")
    if len(lease_id) != 2 * layout.NAME_BYTES or key != layout.lease_key(lease_id, _number(number)):
        raise IntegrityError(f"{key} is no lease", hint="find out what put it there and remove it")
    return lease_id, int(number)


def remove_stale(tier: Tier, keyring: Keyring, now: float) -> list[FoundLease]:
    """Take stale leases away for good and return those that live. Raises what the tier raises."""
    live = []
    for lease in found(tier, keyring):
        if not lease.stale(now):
            live.append(lease)
            continue
        for number in lease.objects:  # 0 first: from then on its holder knows
            with suppress(NotFoundError):
                tier.delete(layout.lease_key(lease.id, number))
    return live


def refuse_second(others: Iterable[FoundLease]) -> None:
    """BusyError when one of these is of a work of which only one may run at a time."""
    for other in others:
        if other.newest.what in (GC, REBUILD, REPAIR, CONSOLIDATE, MOVE):
            raise BusyError(
                f"{other.newest.what} runs already: on {other.newest.host}, pid {other.newest.pid}",
                hint="wait for it; `vmcellar locks` shows it. If its host died, its lease ends within 20 minutes",
            )
