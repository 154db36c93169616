"""What every tier offers, and the contract that one conformance suite (tests/tiers) holds all of them to.

Keys are names made of one to four parts of letters, digits, `.`, `_` and `-`, joined by `/`; no part begins with a dot.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self, runtime_checkable

from vmcellar.config.prices import Speed
from vmcellar.errors import IntegrityError, PermanentError

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}){0,3}")


class NotFoundError(PermanentError):
    """There is no object under this key. The place itself was there and answered."""


class ExistsError(PermanentError):
    """There is another object under this key."""


class FullError(PermanentError):
    """The place has no room for it."""


class ArchivedError(PermanentError):
    """The object lies in an archive class and must be thawed before it can be read."""


class LockedError(PermanentError):
    """The object is locked against deletion: it stays, and may be deleted later."""


class TierReader(Protocol):
    """One open object. `read_into` may be called from several threads at once."""

    @property
    def size(self) -> int:
        """The object's length in bytes."""
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`; IntegrityError when the object ends before that.

        Read from the place itself, never from a copy. Of a local directory: from the medium,
        not from this host's memory, where `offset`, length and address are multiples of 4096.
        """
        ...

    def close(self) -> None:
        """Let go of the object; harmless twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Tier(Protocol):
    """A place for immutable objects. All methods may be called from any thread and from several processes.

    - What `put` or `adopt` returned from is durable: it survives a power cut.
    - An object is never changed and never overwritten: a key that exists raises PermanentError.
    - A crash leaves either the whole object or none under its key; what was half-written is seen by no other method,
      and `clear_unfinished` removes it.
    - A write that a lost connection left in doubt is settled by the call itself: it asks whether the object that is
      there is its own.
    - Retries of what may pass are made inside, with back-off and jitter; the error of the last one is raised.
    - Errors: NotFoundError, PermanentError (full, read-only, vanished, no permission; with what to do),
      TransientError (an I/O error that may pass), IntegrityError (an object is shorter than what was asked for, or
      not what was written), ArchivedError (to be thawed first).
    """

    @property
    def name(self) -> str:
        """What the configuration calls it: `hot`."""
        ...

    @property
    def kind(self) -> str:
        """Which implementation it is: `local`, `s3`, `ceph`."""
        ...

    def staging_dir(self) -> Path:
        """A folder of this host from where `adopt` is cheapest. What lies there is not part of the repository."""
        ...

    def adopt(self, path: Path, key: str) -> None:
        """Make the file durable under `key`; the file is gone afterwards.

        Repeating it after a crash in the middle finishes it. On an error the file stays where it was.
        """
        ...

    def put(self, key: str, data: bytes) -> None:
        """Make `data` durable under `key`."""
        ...

    def get(self, key: str) -> bytes:
        """The whole object."""
        ...

    def read(self, key: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; IntegrityError when the object ends before that."""
        ...

    def open(self, key: str) -> TierReader:
        """The object for many reads."""
        ...

    def size(self, key: str) -> int:
        """The object's length in bytes."""
        ...

    def exists(self, key: str) -> bool:
        """Whether the object is there; raises when the place itself does not answer."""
        ...

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(key, size) of every object whose key begins with `prefix`, in the order of keys.

        Complete or an error, never a part: whoever deletes what is not listed relies on it (pitfall 20). The error
        may come at any step of the iteration.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove the object, durably. NotFoundError when there is none."""
        ...

    def free_bytes(self) -> int | None:
        """How much more can be written; None when the place has no bound that it knows."""
        ...

    def describe(self) -> str:
        """Where and on what it is, in one line for people: medium, class, copies. Asks the place."""
        ...

    def clear_unfinished(self, older_than: float) -> Sequence[str]:
        """Remove what writers that died left half-written, and name each.

        What changed within `older_than` seconds stays, by the clock of the place: a writer may be at work on it.
        """
        ...


@dataclass(frozen=True, slots=True)
class ArchiveState:
    """Whether an object of `size` bytes on `tier` can be read.

    `readable`: at once and for good; `archived`: after a thaw; `thawing`: one is under way; `thawed`: until `until`,
    seconds since 1970.
    """

    key: str
    size: int
    tier: str
    state: Literal["readable", "archived", "thawing", "thawed"]
    until: float | None = None

    @property
    def reads(self) -> bool:
        """Whether a read would succeed now."""
        return self.state in ("readable", "thawed")


@runtime_checkable
class Archive(Protocol):
    """What a tier offers besides `Tier` when its objects may lie where they must be thawed before they are read.

    Any thread. Errors as those of `Tier`.
    """

    def thaw_state(self, keys: Iterable[str]) -> Mapping[str, ArchiveState]:
        """The state of each object, as the place tells it now; NotFoundError for one that is not there."""
        ...

    def thaw(self, keys: Iterable[str], days: int, speed: Speed) -> None:
        """Ask for a thaw of all of them, to be readable for `days` days from when it is done. Costs money.

        Returns when all are asked for, not when they can be read. Repeating it is harmless: what is being thawed goes
        on, or faster if `speed` is; what is thawed stays so for `days` from now; what is readable is left alone. After
        an error some may have been asked for: repeat it.
        """
        ...


@runtime_checkable
class Replaces(Protocol):
    """A tier that can put a file in the place of a damaged object at once."""

    def replace(self, path: Path, key: str) -> None:
        """Make the file durable under `key` in place of what is there; the file is gone afterwards.

        A crash leaves the one or the other, whole. The caller has proven that the file is what was stored.
        """
        ...


@runtime_checkable
class HasReserve(Protocol):
    """A tier that keeps some room for work which deletes."""

    def making_room(self) -> AbstractContextManager[None]:
        """While this is entered, `put` gives the reserve up when the place is full; at the end it is made again if
        there is room for it. Any thread, any number at once.
        """
        ...


@runtime_checkable
class Copies(Protocol):
    """A tier of several places, of which more than one may have an object."""

    def copies(self, key: str) -> Sequence[Tier]:
        """Each place that has the object now, nearest first; places that do not answer are left out."""
        ...


@runtime_checkable
class KeepsDigests(Protocol):
    """A tier that keeps a digest beside each object, which can be had where the object itself must be thawed."""

    def stored_digest(self, key: str) -> str | None:
        """BLAKE3 in hex of what was written under `key`, as its writer said; None when it said none."""
        ...


LOCKED = ("config", "keys/", "epochs/", "meta/", "data/", "points/")
"""What is locked where `lock:` says so: all that a restore needs. Index parts are made again from the packs."""

REVOCABLE = ("keys/", "epochs/")
"""Of these, what `vmcellar key` must be able to take away: a delete hides it, and the place keeps it for its time."""


@runtime_checkable
class Locks(Protocol):
    """A tier that can keep objects from being deleted until a time. `delete` of such an object raises LockedError.

    Any thread. Errors as those of `Tier`. What `lock_keep` is None for locks nothing.
    """

    @property
    def lock_keep(self) -> float | None:
        """For so many seconds what is written below `LOCKED` is locked."""
        ...

    def locked_until(self, keys: Iterable[str]) -> Mapping[str, float]:
        """Until when each object is locked (seconds since 1970): 0 if it is not, infinity under a legal hold. Those
        that are not there are left out.
        """
        ...

    def lock_until(self, keys: Iterable[str], until: float) -> None:
        """Lock all of them until then, or longer if they are. After an error some may have been: repeat it."""
        ...

    def hidden(self, *, keys: bool = False) -> Sequence[str]:
        """What is locked and cannot be read, as somebody deleted it on top of its lock or wrote something over it.

        Of key slots and epoch keys (`REVOCABLE`) only with `keys`: they may have been taken away on purpose.
        """
        ...

    def undelete(self, keys: Iterable[str]) -> None:
        """Make what is hidden readable again: what was written first."""
        ...

    def attack(self, key: str) -> str:
        """Try to delete a locked object in each way that these credentials could; what succeeded, else empty."""
        ...


def is_locked_at_once(key: str) -> bool:
    """Whether an object of this name is locked when it is written. A point only is when its backup has looked that all
    it needs is there (`lock_now`): until then it may have to be taken back.
    """
    return key.startswith(LOCKED) and not key.startswith("points/")


def lock_now(tier: Tier, key: str, now: float) -> None:
    """Lock an object that was just written, where the tier locks anything."""
    if isinstance(tier, Locks) and tier.lock_keep is not None:
        tier.lock_until([key], now + tier.lock_keep)


def exists_error(tier: Tier, key: str) -> ExistsError:
    """What `put` and `adopt` raise for a key that is taken."""
    return ExistsError(f"{tier!r}: {key} exists already", hint="objects are never overwritten; choose a new name")


def locked_error(tier: Tier, key: str, until: float) -> LockedError:
    """What `delete` raises for what is locked until then."""
    when = "a legal hold is lifted" if until == inf else datetime.fromtimestamp(until).astimezone().isoformat()
    return LockedError(f"{tier!r}: {key} is locked until {when}", hint="it can be deleted after that, not before")


def too_short(tier: Tier, key: str, offset: int, length: int) -> IntegrityError:
    """What a read raises for an object that ends too early."""
    return IntegrityError(
        f"{tier!r}: {key} ends before byte {offset + length}: it is cut short",
        hint="type `vmcellar verify --all` to see which points it touches",
    )


def check_key(key: str) -> str:
    """`key` if it is well formed, else ValueError: no key may ever leave the tier's own folder."""
    if _KEY.fullmatch(key) is None:
        raise ValueError(f"not a key: {key!r}")
    return key
