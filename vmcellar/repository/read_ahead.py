"""Many small objects from one tier: one after the other where that is quick, many at once where each takes a while."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from vmcellar.tiers.cellar import CellarTier

if TYPE_CHECKING:
    from vmcellar.tiers.base import Tier

READS_AT_ONCE = 16
_WINDOW = 1024
"""So many contents are in memory at the most."""
_WINDOW_BYTES = 32 << 20
"""And so many bytes of them, or one object, where their sizes are known."""

T = TypeVar("T")
R = TypeVar("R")


def is_near(tier: Tier) -> bool:
    """Whether a request for one of the small objects takes no round trip to a server."""
    return (tier.hot if isinstance(tier, CellarTier) else tier).kind == "local"


def at_once(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """What `work` gives for each, in order; many at once, for work that waits for a server. The first error is raised
    when none runs any more.
    """
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(READS_AT_ONCE, len(items)), thread_name_prefix="at-once") as pool:
        try:
            return list(pool.map(work, items))
        finally:
            pool.shutdown(cancel_futures=True)


def contents(
    tier: Tier, keys: Sequence[str], sizes: Mapping[str, int] | None = None
) -> Generator[tuple[str, Callable[[], bytes]]]:
    """Each key, in order, with what gives its object's bytes or raises what the tier raised. `sizes` are for objects
    that may be large: so many less are read ahead.

    To be closed by who stops before the end: reads that have begun are waited for then, and no others begin.
    """
    if is_near(tier):
        yield from ((key, partial(tier.get, key)) for key in keys)
        return
    with ThreadPoolExecutor(READS_AT_ONCE, thread_name_prefix="read-ahead") as pool:
        for window in _windows(keys, sizes or {}):
            reads = [(key, pool.submit(tier.get, key)) for key in window]
            try:
                yield from ((key, read.result) for key, read in reads)
            finally:
                for _, read in reads:
                    read.cancel()


def _windows(keys: Sequence[str], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    window: list[str] = []
    held = 0
    for key in keys:
        size = sizes.get(key, 0)
        if window and (len(window) == _WINDOW or held + size > _WINDOW_BYTES):
            yield window
            window, held = [], 0
        window.append(key)
        held += size
    if window:
        yield window
