"""Mend what opens a repository: `config`, key slots and epoch keys, out of another copy of the repository.

The keys come from here if these still open, else from the copy, once these are shown to be of the same repository. A
copy of an object is checked before it replaces anything: config and epoch keys by their seal, slots by their checksum.
What is damaged is kept under `quarantine/` first. What is missing here may have been removed on purpose: a slot comes
back only where no slot is left, an epoch key only where nobody holds that epoch any more.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vmcellar.crypto import epochs, slots
from vmcellar.crypto.layout import KEYS, epoch_name
from vmcellar.crypto.recipient import PrivateKey
from vmcellar.errors import IntegrityError, PermanentError, VmcellarError
from vmcellar.repository import config_object, layout, leases, points, whole
from vmcellar.repository.aside import set_aside
from vmcellar.repository.repair import NotRepaired, Repaired
from vmcellar.repository.repository import unlock
from vmcellar.tiers.base import NotFoundError, Replaces, Tier

if TYPE_CHECKING:
    from vmcellar.crypto.base import Keyring


@dataclass(slots=True)
class KeysReport:
    """What is whole again (of a dry run: would be), and what could not be mended."""

    repaired: list[Repaired] = field(default_factory=list)
    not_repaired: list[NotRepaired] = field(default_factory=list)


def repair_keys(tier: Tier, copy: Tier, key: bytes | PrivateKey, *, dry_run: bool = False) -> KeysReport:
    """Check all of them, and mend what the copy has whole. Nothing is written while nothing is damaged.

    Raises what opening the repository raises when neither it nor the copy opens with `key`, or the copy may be of
    another repository; PermanentError while another repair or a gc runs. Killed at any instant, the next run goes on;
    but for one thing on tiers that cannot replace an object at once: a slot lies under quarantine/ alone then, and is
    told as not repaired, as it may also have been removed since.
    """
    keyring, own = _opened(tier, copy, key)
    run = _Run(tier, copy, keyring, own)
    damaged = list(run.damaged())
    if not damaged:
        return run.report
    if dry_run:
        for name, was in damaged:
            run.mend(name, was, write=False)
        return run.report
    with leases.holding(tier, keyring, leases.REPAIR) as lease:
        others = leases.remove_stale(tier, keyring, time.time())
        leases.refuse_second(other for other in others if other.id != lease.id)
        for name, was in damaged:
            lease.check()
            run.mend(name, was, write=True)
    return run.report


def _opened(tier: Tier, copy: Tier, key: bytes | PrivateKey) -> tuple[Keyring, bytes]:
    try:
        return unlock(tier, key)
    except (IntegrityError, PermanentError) as error:
        try:
            keyring, own = unlock(copy, key)
        except VmcellarError:
            raise error from None
        if not _belongs(tier, keyring, own):
            raise
        return keyring, own


def _belongs(tier: Tier, keyring: Keyring, own: bytes) -> bool:
    """Whether what lies here is of the repository that these keys open: its config says so, or else a point does."""
    try:
        found = config_object.parse(tier.get(layout.CONFIG_KEY))
        config_object.check(keyring, found)
    except VmcellarError:
        return any(_is_ours(tier, keyring, own, name) for name, _ in tier.list(layout.POINTS))
    return found.id == own


def _is_ours(tier: Tier, keyring: Keyring, own: bytes, name: str) -> bool:
    try:
        points.decode(keyring, own, name.removeprefix(layout.POINTS), tier.get(name))
    except VmcellarError:
        return False
    return True


@dataclass(slots=True)
class _Run:
    """One run; one thread."""

    tier: Tier
    copy: Tier
    keyring: Keyring
    own: bytes
    report: KeysReport = field(default_factory=KeysReport)

    def damaged(self) -> Iterator[tuple[str, str]]:
        """(object, damaged or missing): slots first and the config last, so that what opens was mended before."""
        yield from self._slots()
        yield from self._epochs()
        state = self._state(layout.CONFIG_KEY)
        if state:
            yield layout.CONFIG_KEY, state

    def _slots(self) -> Iterator[tuple[str, str]]:
        here = [name for name, _ in self.tier.list(KEYS)]
        yield from ((name, "damaged") for name in here if self._state(name) == "damaged")
        if not here:
            yield from ((name, "missing") for name, _ in self.copy.list(KEYS))
            return
        if isinstance(self.tier, Replaces):
            return
        for aside, _ in self.tier.list(f"{layout.QUARANTINE}{KEYS}"):
            name = aside.removeprefix(layout.QUARANTINE).rpartition("-")[0]
            if name not in here:
                why = f"{aside} was set aside, and no slot is in its place: was it removed? Else copy it back by hand"
                self.report.not_repaired.append(NotRepaired("key object", name, why))

    def _epochs(self) -> Iterator[tuple[str, str]]:
        here = epochs.by_epoch(self.tier)
        for name in _names(here):
            if self._state(name) == "damaged":
                yield name, "damaged"
        gone = {epoch: held for epoch, held in epochs.by_epoch(self.copy).items() if epoch not in here}
        if gone:
            here_too = {name.removeprefix(KEYS) for name, _ in self.tier.list(KEYS)}
            no_more = {slot.id for slot in slots.list_slots(self.copy) if slot.kind == slots.RECIPIENT} - here_too
            yield from ((name, "missing") for name in _names(gone) if name.rpartition("-")[2] not in no_more)

    def _state(self, name: str) -> str:
        """Damaged, missing, or nothing of both."""
        try:
            whole.check_record(self.keyring, self.own, name, self.tier.get(name))
        except NotFoundError:
            return "missing"
        except IntegrityError:
            return "damaged"
        except PermanentError:  # of a newer format
            return ""
        return ""

    def mend(self, name: str, was: str, *, write: bool) -> None:
        """Put the copy's object in its place, if that is whole."""
        try:
            data = self.copy.get(name)
            whole.check_record(self.keyring, self.own, name, data)
        except VmcellarError as error:
            self.report.not_repaired.append(NotRepaired("key object", name, f"no whole copy: {error.message}"))
            return
        if write:
            self._write(name, data, was)
        self.report.repaired.append(Repaired("key object", name, was))

    def _write(self, name: str, data: bytes, was: str) -> None:
        if was == "missing":
            self.tier.put(name, data)
            return
        set_aside(self.tier, name)
        if isinstance(self.tier, Replaces):
            with tempfile.TemporaryDirectory(prefix="repair-", dir=self.tier.staging_dir()) as folder:
                path = Path(folder) / "object"
                path.write_bytes(data)
                self.tier.replace(path, name)
            return
        self.tier.delete(name)
        self.tier.put(name, data)


def _names(held: dict[bytes, list[str]]) -> list[str]:
    return sorted(epoch_name(epoch, holder) for epoch, holders in held.items() for holder in holders)
