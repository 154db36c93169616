"""Bring packs near: a copy on hot of each that can be read, so that restores read from there.

For what was thawed, so that one thaw serves many restores and its end cuts none short. A copy that is made stays made:
the next call goes on with what has become readable since. `tiers move` drops such copies again when the rules say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmcellar.errors import PermanentError
from vmcellar.policy.tier_pace import TierPace
from vmcellar.progress import CancelToken, ProgressSink, no_progress
from vmcellar.repository import leases
from vmcellar.tiers.base import ArchivedError, ArchiveState
from vmcellar.tiers.cellar import PACKS
from vmcellar.upkeep.carry import Carrier, Pace
from vmcellar.upkeep.limits import Limits
from vmcellar.upkeep.survey import cellar_of

if TYPE_CHECKING:
    from vmcellar.repository.repository import Repository
    from vmcellar.tiers.cellar import CellarTier

ID_DIGITS = 8


@dataclass(frozen=True, slots=True)
class Brought:
    """What came of it: packs copied now and their bytes, those that hot had, and those that cannot be read yet."""

    copied: int
    bytes: int
    there: int
    asleep: int


def bring(
    repository: Repository,
    keys: Iterable[str],
    *,
    at_once: int = 2,
    progress: ProgressSink = no_progress,
    cancel: CancelToken | None = None,
) -> Brought:
    """Copy those of the packs `keys` to hot that can be read now, each read back; `at_once` at a time.

    Reports copied bytes as stage "move". Before anything is copied: UsageError for a repository of one tier,
    PermanentError without room on hot for all of them, or while gc or another work of its kind runs. Raises what the
    tiers raise; CancelledError when stopped. What was copied stays.
    """
    cancel = cancel or CancelToken()
    cellar = cellar_of(repository)
    with ExitStack() as stack:
        work = leases.holding(repository.tier, repository.keyring, leases.MOVE, repository.clock)
        lease = stack.enter_context(work)
        others = leases.remove_stale(repository.tier, repository.keyring, repository.clock())
        leases.refuse_second(other for other in others if other.id != lease.id)
        states = [state for key, state in cellar.thaw_state(keys).items() if key.startswith(PACKS)]
        far = [state for state in states if state.tier != cellar.name]
        _check_room(cellar, far)
        name = f"brings-{repository.id.hex()[:ID_DIGITS]}"
        carrier = Carrier(name, Pace(None), progress, cancel, Limits(_without(repository.restore_pace, cellar.name)))
        carrier.clear(cellar.hot)

        def copy(state: ArchiveState) -> int:
            cancel.check()
            lease.check()
            try:
                carrier.copy(state.key, cellar.tier_named(state.tier), cellar.hot)
            except ArchivedError:  # its thaw ended since we looked
                return 0
            cellar.forget(state.key)
            return state.size

        with ThreadPoolExecutor(at_once, thread_name_prefix="bring") as pool:
            try:
                sizes = [size for size in pool.map(copy, (state for state in far if state.reads)) if size]
            finally:
                pool.shutdown(cancel_futures=True)
    return Brought(len(sizes), sum(sizes), len(states) - len(far), len(far) - len(sizes))


def _without(pace: TierPace, hot: str) -> TierPace:
    """Reading from the others is what is limited, not writing to hot and reading it back."""
    return TierPace({name: throttle for name, throttle in pace.throttles.items() if name != hot})


def _check_room(cellar: CellarTier, far: Sequence[ArchiveState]) -> None:
    """Room for all of them, also those that are asleep: half of a point on hot helps nobody."""
    needed, free = sum(state.size for state in far), cellar.free_bytes()
    if free is not None and needed > free:
        raise PermanentError(
            f"{cellar.hot!r} has no room for {len(far)} packs: {needed >> 20} MiB needed, {free >> 20} MiB free",
            hint="free space there, or restore without --fetch: packs are then read where they lie",
        )
