"""Mirrors: all that is not packs of disk bytes lies on every tier, so that any one of them tells what there is.

A mirror is complete at any moment as far as its points go: what points need is copied before them and removed after
them. What hot no longer has is removed, but only after hot was listed without an error, and holds a repository, and
never what hot can only have lost: a pack of metadata that points need, a pinned point, the last key of an epoch, the
slot of somebody who holds epochs, the last slot that reads disks, the newest point of all. Nothing takes the place of a
mirrored object unless it was shown to be whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmcellar.crypto.epochs import by_epoch
from vmcellar.crypto.layout import EPOCHS, KEYS, epoch_name
from vmcellar.crypto.slots import PASSPHRASE, RECIPIENT, list_slots
from vmcellar.errors import IntegrityError, PermanentError
from vmcellar.repository.layout import CONFIG_KEY, EVIDENCE, INDEX, MARKS, META, PINS, POINTS, split_pin
from vmcellar.tiers.base import LockedError, NotFoundError, lock_now

if TYPE_CHECKING:
    from vmcellar.tiers.base import Tier
    from vmcellar.upkeep.carry import Carrier
    from vmcellar.upkeep.survey import Survey

IN_ORDER = (KEYS, EPOCHS, META, MARKS, INDEX, PINS, EVIDENCE, POINTS)
"""What is mirrored besides the config object, in the order in which it is copied: a mark before the index
parts that name what takes the place of its packs. Leases are of hot alone."""


@dataclass(frozen=True, slots=True)
class Mirrored:
    """What was, or would be, copied to one tier and removed from it; `bytes` of what is copied. `kept` tells what was
    left as it is there, because it is hot where it is damaged or missing.
    """

    tier: str
    copied: int
    bytes: int
    removed: int
    kept: tuple[str, ...] = ()


class Mirror:
    """Brings mirrors up to date with hot as it was listed when this was made; one thread."""

    def __init__(
        self,
        hot: Tier,
        found: Survey,
        carrier: Carrier,
        check: Callable[[], None],
        check_object: Callable[[str], None],
        was_taken_back: Callable[[str, bytes], bool],
    ) -> None:
        """List hot, of which `found` says what points need and what of that is lost. `check` is called before each
        change, and raises to stop; `check_object` raises IntegrityError for an object of hot that is damaged;
        `was_taken_back` tells whether the commit that wrote this object of a point took it back. PermanentError when
        hot holds nothing.
        """
        self._hot = hot
        self._needed = frozenset(found.lost)
        self._all_read = not found.unread
        self._carrier = carrier
        self._check = check
        self._check_object = check_object
        self._was_taken_back = was_taken_back
        epochs = by_epoch(hot)
        self._epochs = epochs.keys()
        self._holders = {holder for holders in epochs.values() for holder in holders}
        self._reads_disks = any(slot.kind in (PASSPHRASE, RECIPIENT) for slot in list_slots(hot))
        listed = {prefix: dict(hot.list(prefix)) for prefix in reversed(IN_ORDER)}  # points first: the rest is there
        if not (listed[KEYS] and hot.exists(CONFIG_KEY)):
            raise PermanentError(
                f"{hot!r} holds no whole repository: no mirror is touched", hint="is a part of it not mounted?"
            )
        self._wanted = {CONFIG_KEY: hot.size(CONFIG_KEY)}
        for prefix in IN_ORDER:
            self._wanted.update(listed[prefix])
        self._pinned = {split_pin(key)[0] for key in listed[PINS]}

    def update(self, tier: Tier, *, dry_run: bool) -> Mirrored:
        """Bring one tier up to date. Raises what the tiers raise; the next call goes on."""
        there: dict[str, int] = {}
        for prefix in IN_ORDER:
            there.update(tier.list(prefix))
        if tier.exists(CONFIG_KEY):
            there[CONFIG_KEY] = tier.size(CONFIG_KEY)
        missing = [key for key, size in self._wanted.items() if there.get(key) != size]
        extra = [key for key in reversed(there) if key not in self._wanted]
        self._refuse_what_prune_never_does(tier, there)
        kept = {**self._damaged(tier, [key for key in missing if key in there]), **self._lost(tier, extra)}
        missing = [key for key in missing if key not in kept]
        # packs of metadata stay as long as there is a point of which nobody can tell what it needs
        needy = not self._all_read or any(key.startswith(POINTS) for key in kept)
        extra = [key for key in extra if key not in kept and not (needy and key.startswith(META))]
        if not dry_run:
            self._carrier.clear(tier)
            for key in missing:
                self._copy(key, tier, replace=key in there)
            extra = [key for key in extra if self._remove(key, tier)]
        size = sum(self._wanted[key] for key in missing)
        return Mirrored(tier.name, len(missing), size, len(extra), tuple(kept.values()))

    def _refuse_what_prune_never_does(self, tier: Tier, there: dict[str, int]) -> None:
        """Names of points begin with their time, and the newest point of a VM is never dropped: a mirror that has a
        newer one than hot was made of a hot tier that had more, or has a copy of one that a commit took back.
        """
        here = max((key for key in self._wanted if key.startswith(POINTS)), default="")
        newer = sorted(key for key in there if key.startswith(POINTS) and key > here)
        newer = [key for key in newer if not self._was_taken_back(key.removeprefix(POINTS), tier.get(key))]
        if newer:
            raise PermanentError(
                f"{self._hot!r} lacks the newest of the restore points that {tier!r} mirrors ({newer[-1]}): nothing is "
                "removed",
                hint="is a part of the hot tier not mounted, lost, or of an older state? `vmcellar verify "
                f"{newer[-1].removeprefix(POINTS)} --repair --from {tier.name}` brings that point back",
            )

    def _damaged(self, tier: Tier, keys: Iterable[str]) -> dict[str, str]:
        """Objects have one content for ever, so one of two that differ in length is damaged; those where it is hot's,
        with what to say.
        """
        found = {}
        for key in keys:
            try:
                self._check_object(key)
            except NotFoundError:  # dropped since it was listed
                continue
            except IntegrityError as error:
                found[key] = f"{key} is damaged on {self._hot!r}: {error.message}; {_mend(tier, key)}"
        return found

    def _lost(self, tier: Tier, extra: Iterable[str]) -> dict[str, str]:
        """What nothing ever removes, and hot does not hold any more, with what to say."""
        gone = {epoch: held for epoch, held in by_epoch(tier).items() if epoch not in self._epochs}
        names = [epoch_name(epoch, holder) for epoch, holders in gone.items() for holder in holders]
        names += [key for key in extra if self._is_lost(key)]
        return {name: f"{name} is missing on {self._hot!r}; {_mend(tier, name)}" for name in names}

    def _is_lost(self, key: str) -> bool:
        """Whether hot has what nobody could have left there in removing this: a pin of a point, epochs that are
        sealed to a key slot, no other slot that reads disks, points that need a pack.
        """
        if key.startswith(POINTS):
            return key.removeprefix(POINTS) in self._pinned
        if key.startswith(KEYS):
            return key.removeprefix(KEYS) in self._holders or not self._reads_disks
        return key in self._needed

    def _copy(self, key: str, tier: Tier, *, replace: bool) -> None:
        self._check()
        try:
            if replace and not self._removed(key, tier):
                return
            self._carrier.copy(key, self._hot, tier)
            if key.startswith(POINTS):
                lock_now(tier, key, time.time())
        except NotFoundError:  # dropped from hot since it was listed
            if self._hot.exists(key):
                raise

    def _remove(self, key: str, tier: Tier) -> bool:
        """False when it is locked: the next update tries again."""
        self._check()
        return self._hot.exists(key) or self._removed(key, tier)

    @staticmethod
    def _removed(key: str, tier: Tier) -> bool:
        try:
            tier.delete(key)
        except LockedError:
            return False
        return True


def _mend(tier: Tier, key: str) -> str:
    if key.startswith(KEYS):
        return f"copy it back from {tier!r}; if `vmcellar key remove --force` took it away, delete it there"
    what = key.removeprefix(POINTS) if key.startswith(POINTS) else "--all"
    return f"`vmcellar verify {what} --repair --from {tier.name}` brings it back"
