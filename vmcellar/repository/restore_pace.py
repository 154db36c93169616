"""How fast each tier may be read to restore, serve and check points."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmcellar.policy.tier_pace import TierPace, pace_of
from vmcellar.tiers.cellar import place_of

__all__ = ["TierPace", "pay", "restore_pace"]

if TYPE_CHECKING:
    from vmcellar.progress import CancelToken
    from vmcellar.repository.packs import Group
    from vmcellar.repository.repository import Repository, Settings


def restore_pace(config: Settings) -> TierPace:
    """The limits of a configuration, shared by the processes of this host that have the same state directory."""
    tiers = {"hot": config.hot_tier(), **config.other_tiers()}
    return pace_of(config.state / "restore-bandwidth", {name: tier.restores for name, tier in tiers.items()})


def pay(repository: Repository, group: Group, cancel: CancelToken) -> int:
    """Return when a group that was just read may have passed, with its bytes; CancelledError when stopped meanwhile.

    Paid for afterwards, as only then it is known on which tier the copy lies: so each thread is one group ahead.
    """
    length = group.end - group.start
    repository.restore_pace.take(place_of(repository.tier, group.objects[0].pack.key), length, cancel)
    return length
