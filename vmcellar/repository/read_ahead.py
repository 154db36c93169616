"""Many small objects from one tier: one after the other where that is quick, many at once where each takes a while."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from vmcellar.tiers.cellar import CellarTier

if TYPE_CHECKING:
    from vmcellar.tiers.base import Tier

READS_AT_ONCE = 16
_WINDOW = 1024
"""So many contents are in memory at the most."""


def contents(tier: Tier, keys: Sequence[str]) -> Generator[tuple[str, Callable[[], bytes]]]:
    """Each key, in order, with what gives its object's bytes or raises what the tier raised.

    To be closed by who stops before the end: reads that have begun are waited for then, and no others begin.
    """
    near = tier.hot if isinstance(tier, CellarTier) else tier
    if near.kind == "local":
        yield from ((key, partial(tier.get, key)) for key in keys)
        return
    with ThreadPoolExecutor(READS_AT_ONCE, thread_name_prefix="read-ahead") as pool:
        for start in range(0, len(keys), _WINDOW):
            reads = [(key, pool.submit(tier.get, key)) for key in keys[start : start + _WINDOW]]
            try:
                yield from ((key, read.result) for key, read in reads)
            finally:
                for _, read in reads:
                    read.cancel()
