"""What an inventory costs over time, and what a thaw would: sums over a price table, nothing else.

Times are seconds since 1970, amounts in the currency of the price tables. A stay is one object in one place for some
time; a place charges for it from the moment it is written until it goes, or until its minimum time is over if it goes
before that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from vmcellar.config.prices import SPEEDS, Prices, Speed

GB = 1 << 30
DAY = 86400
MONTH = 30 * DAY


@dataclass(frozen=True, slots=True)
class Stay:
    """`size` bytes as one object on `tier` from `since` until `until`; None while it is there."""

    tier: str
    size: int
    since: float
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Bill:
    """What was charged, by what for. `early` is for objects that went before their minimum time."""

    storage: float = 0.0
    writes: float = 0.0
    early: float = 0.0
    reads: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.storage + self.writes + self.early + self.reads

    def __add__(self, other: Bill) -> Bill:
        return Bill(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Offer:
    """What thawing and then reading some objects once costs at one speed, and after how many hours they can be read."""

    speed: Speed
    hours: float
    retrieval: float
    copies: float
    transfer: float

    @property
    def total(self) -> float:
        """All of it: the thaw, the days that its copies lie there, and the way out."""
        return self.retrieval + self.copies + self.transfer


def money_text(amount: float) -> str:
    """An amount in words: to the cent, and what is less than a dime by two digits that tell, not as nothing."""
    return f"{amount:,.2f}" if amount >= 0.1 or amount == 0 else f"{amount:.2g}"


def month_cost(prices: Prices, sizes: Iterable[int]) -> float:
    """What objects of these sizes cost in a month in which they just lie there."""
    return sum(_lying(prices, size) for size in sizes)


def bill(prices: Mapping[str, Prices], stays: Iterable[Stay], start: float, end: float) -> Bill:
    """What was charged for these stays from `start` to `end`: a write falls on its moment, an early end on its own.

    KeyError for a tier without prices.
    """
    total = Bill()
    for stay in stays:
        total += _charged(prices[stay.tier], stay, start, end)
    return total


def _charged(prices: Prices, stay: Stay, start: float, end: float) -> Bill:
    gone = end if stay.until is None else stay.until
    monthly = _lying(prices, stay.size)
    lain = max(0.0, min(gone, end) - max(stay.since, start))
    unpaid = max(0.0, stay.since + prices.minimum_days * DAY - gone) if stay.until is not None else 0.0
    return Bill(
        storage=monthly * lain / MONTH,
        writes=prices.put_1000 / 1000 if start <= stay.since < end else 0.0,
        early=monthly * unpaid / MONTH if start <= gone < end else 0.0,
    )


def read_cost(prices: Prices, sizes: Iterable[int]) -> float:
    """What reading these objects once costs where they can be read."""
    found = list(sizes)
    return sum(found) / GB * (prices.read_gb + prices.transfer_gb) + len(found) * prices.get_1000 / 1000


def early_cost(prices: Prices, size: int, age: float) -> float:
    """What removing an object that has lain there for `age` seconds costs, as its minimum time is not over."""
    return _lying(prices, size) * max(0.0, prices.minimum_days * DAY - age) / MONTH


def offers(prices: Prices, sizes: Iterable[int], days: int, *, frozen: Iterable[int] | None = None) -> list[Offer]:
    """What each speed costs, cheapest class first, to read objects of these `sizes` once within `days` of their thaw.

    `frozen` are the sizes of those that must be thawed for it; all of them by default.
    """
    found = list(sizes)
    cold = found if frozen is None else list(frozen)
    transfer = read_cost(prices, found)
    copies = sum(cold) / GB * prices.thawed_gb_month * days * DAY / MONTH
    return [
        Offer(
            speed=speed,
            hours=prices.retrieval[speed].hours if cold else 0.0,
            retrieval=sum(cold) / GB * prices.retrieval[speed].gb
            + len(cold) * prices.retrieval[speed].requests_1000 / 1000,
            copies=copies,
            transfer=transfer,
        )
        for speed in SPEEDS
        if speed in prices.retrieval
    ]


def _lying(prices: Prices, size: int) -> float:
    """What an object of this size costs per month."""
    billed = max(size, prices.minimum_object) + prices.overhead
    return (billed * prices.gb_month + prices.overhead_hot * prices.thawed_gb_month) / GB
