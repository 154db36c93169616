"""What operators were told, and what they have still to be told: each condition once, and once when it is over.

Kept in `<state>/notices.json`, written by rename before anything is sent: a notice that no receiver took is sent again
by the next look, also after a kill, and one that a receiver took may come twice after a kill, never not at all.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from vmcellar.config.section import Section
from vmcellar.errors import PermanentError

if TYPE_CHECKING:
    from vmcellar.catalog.conditions import Condition

FILE = "notices.json"
REFUSED_MOST = 3
"""Not one: a single notice that a receiver never takes must not keep the others from it."""


class Told(Section):
    """A condition that holds, and since when, in seconds."""

    text: str
    severity: str
    since: float


class Notice(Section):
    """Something to be sent."""

    title: str
    text: str
    severity: str
    to: tuple[str, ...] = Field(default=(), description="the receivers that have not taken it yet, by name")


class _Book(Section):
    holds: dict[str, Told] = Field(default_factory=dict)
    unsent: tuple[Notice, ...] = ()


class Notices:
    """One file; any number of processes, one at a time. PermanentError when it cannot be understood."""

    def __init__(self, state: Path) -> None:
        self._path = state / FILE

    def look(
        self, found: Sequence[Condition], now: float, receivers: Sequence[str]
    ) -> tuple[list[Condition], dict[str, Told]]:
        """Note what began and what ended since the last look, for these receivers, and give both (what ended by key);
        nothing is sent yet.
        """
        with self._held() as book:
            holds = {each.key: each for each in found}
            began = [each for key, each in holds.items() if key not in book.holds]
            ended = {key: told for key, told in book.holds.items() if key not in holds}
            notices = [Notice(title=f"vmcellar: {e.key}", text=e.text, severity=e.severity) for e in began]
            notices += [_over(key, told, len(holds), now) for key, told in ended.items()]
            kept = {key: told for key, told in book.holds.items() if key in holds}
            kept |= {e.key: Told(text=e.text, severity=e.severity, since=now) for e in began}
            waiting = [notice.model_copy(update={"to": tuple(receivers)}) for notice in notices] if receivers else []
            self._write(_Book(holds=kept, unsent=(*book.unsent, *waiting)))
        return began, ended

    def send(self, deliver: Callable[[Notice, str], bool]) -> tuple[int, int]:
        """Give each notice to `deliver` for each receiver that has not taken it, oldest first; how many were taken, and
        how many wait for the next time. A receiver that did not take `REFUSED_MOST` is left alone until then: it is
        down, and each try costs its time.
        """
        sent, refused = 0, Counter[str]()
        with self._held() as book:
            unsent = list(book.unsent)
            for notice in book.unsent:
                for receiver in notice.to:
                    if refused[receiver] >= REFUSED_MOST:
                        continue
                    if not deliver(notice, receiver):
                        refused[receiver] += 1
                    else:
                        sent += 1
                        unsent = _without(unsent, notice, receiver)
                        self._write(_Book(holds=book.holds, unsent=tuple(unsent)))
        return sent, sum(len(notice.to) for notice in unsent)

    def holding(self) -> dict[str, Told]:
        """What holds, by key, as of the last look."""
        with self._held() as book:
            return dict(book.holds)

    @contextmanager
    def _held(self) -> Iterator[_Book]:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self._read()
        finally:
            os.close(lock)

    def _read(self) -> _Book:
        try:
            return _Book.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return _Book()
        except ValidationError as error:
            raise PermanentError(
                f"{self._path} cannot be understood: {error.errors()[0]['msg']}",
                hint="remove it: all that holds is then told once more",
            ) from error

    def _write(self, book: _Book) -> None:
        new = self._path.with_suffix(".new")
        with new.open("w") as file:
            file.write(json.dumps(book.model_dump(mode="json")))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)


def _without(unsent: Sequence[Notice], taken: Notice, receiver: str) -> list[Notice]:
    left = []
    for notice in unsent:
        same = (notice.title, notice.text) == (taken.title, taken.text)
        to = tuple(name for name in notice.to if not (same and name == receiver))
        if to:
            left.append(notice.model_copy(update={"to": to}))
    return left


def _over(key: str, told: Told, left: int, now: float) -> Notice:
    """All is well where nothing else holds, and not before."""
    title = f"vmcellar: over: {key}" if left else "vmcellar: all well again"
    still = f" ({left} other things are still wrong)" if left else ""
    text = f"over after {(now - told.since) / 3600:.1f} h: {told.text}{still}"
    return Notice(title=title, text=text, severity="info")
