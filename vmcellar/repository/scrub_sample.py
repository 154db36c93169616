"""Partial scrubs: each run reads what was read longest ago, so that all is read once in so many runs.

When each object was last read is remembered in the state directory. Losing that file costs nothing but the order.
"""

from __future__ import annotations

import math
import random
import secrets
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from vmcellar.errors import PermanentError, UsageError

if TYPE_CHECKING:
    from vmcellar.repository.packs import PackRef
    from vmcellar.repository.repository import Repository

T = TypeVar("T")

_SCHEMA = "CREATE TABLE IF NOT EXISTS read (name TEXT PRIMARY KEY, time REAL NOT NULL) WITHOUT ROWID"


@dataclass(frozen=True, slots=True)
class Taken:
    """What a sample came to: how many of how many were picked, how many others no run has read yet."""

    kind: str
    picked: int
    of: int
    never: int
    seed: int


class Sample:
    """Picks a part of what is stored; one run, one thread. `taken` says what was picked."""

    def __init__(self, path: Path, fraction: float, seed: int, clock: Callable[[], float] = time.time) -> None:
        """`path` is the file that remembers; equally old objects are put in an order by `seed`."""
        self._path, self._fraction, self._seed, self._clock = path, fraction, seed, clock
        self._picked: list[str] = []
        self.taken: Taken | None = None

    @classmethod
    def of(cls, repository: Repository, fraction: float, seed: int | None = None) -> Self:
        """A sample that remembers in the state directory; without a seed, one by chance."""
        path = repository.cache_dir.parent / f"scrubbed-{repository.id.hex()}.sqlite"
        return cls(path, fraction, secrets.randbelow(1 << 31) if seed is None else seed)

    def packs(self, every: Sequence[PackRef]) -> list[PackRef]:
        """`pick` for packs: what `verify_all(choose=)` takes."""
        return self.pick("pack", every, lambda pack: pack.id.hex())

    def pick(self, kind: str, every: Sequence[T], name: Callable[[T], str]) -> list[T]:
        """The share of `every` that was read longest ago, those never read first; at least one."""
        last = self._last(kind)
        ordered = sorted(every, key=name)
        random.Random(self._seed).shuffle(ordered)  # noqa: S311  (an order, not a secret)
        ordered.sort(key=lambda each: last.get(name(each), 0.0))
        picked = ordered[: math.ceil(len(ordered) * self._fraction)]
        self._picked = [f"{kind} {name(each)}" for each in picked]
        never = sum(1 for each in ordered[len(picked) :] if name(each) not in last)
        self.taken = Taken(kind, len(picked), len(ordered), never, self._seed)
        self._forget(kind, {name(each) for each in every}, last)
        return picked

    def done(self) -> None:
        """What was picked has been read: the next run takes others."""
        now = self._clock()
        self._write("INSERT OR REPLACE INTO read VALUES (?, ?)", [(each, now) for each in self._picked])

    def _last(self, kind: str) -> dict[str, float]:
        with self._database() as database:
            rows = database.execute("SELECT name, time FROM read WHERE name LIKE ?", (f"{kind} %",)).fetchall()
        return {name.removeprefix(f"{kind} "): when for name, when in rows}

    def _forget(self, kind: str, every: Collection[str], last: Iterable[str]) -> None:
        gone = [(f"{kind} {each}",) for each in last if each not in every]
        self._write("DELETE FROM read WHERE name = ?", gone)

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        if rows:
            with self._database() as database, database:
                database.executemany(statement, rows)

    def _database(self) -> _Closing:
        return _Closing(self._path)


class _Closing:
    """A connection for the length of a block; PermanentError with what to do when the file is not usable."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._open = sqlite3.connect(self._path, timeout=60)
        try:
            self._open.execute(_SCHEMA)
        except sqlite3.Error as error:
            self._open.close()
            raise PermanentError(f"{self._path}: {error}", hint="delete the file: it is made again") from error
        return self._open

    def __exit__(self, *_: object) -> None:
        self._open.close()


def parse_share(text: str) -> float:
    """From `5%` or `0.5%` to a fraction; UsageError unless above 0 and at most 100 %."""
    try:
        share = float(text.removesuffix("%")) / 100 if text.endswith("%") else math.nan
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise UsageError(f"--sample: {text} is no share", hint="such as --sample 5%")
    return share
