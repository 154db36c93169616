"""Drops: notes that a copy of a pack is about to be deleted, while another one stays (format page, section 12).

A lease is looked at before each deletion, but a process may be suspended between that look and the deletion itself, for
so long that others take its lease away and move the same pack the other way: then it deletes the only copy. So a note
is written before the look, and who takes a lease away looks for notes after that. If the look found the lease, the note
was there before the lease went, and is seen: the pack is left alone until the process that wrote it has surely ended.
No clock is part of this, but for notes of other hosts, which count for `KEPT` seconds.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from vmcellar.errors import IntegrityError, VmcellarError
from vmcellar.repository import layout
from vmcellar.repository.leases import Clock, boot, has_ended
from vmcellar.repository.records import Instant, Pid, RecordKind
from vmcellar.tiers.base import NotFoundError

if TYPE_CHECKING:
    from vmcellar.crypto.base import Keyring
    from vmcellar.tiers.base import Tier

KEPT = 7 * 24 * 3600.0
"""For so many seconds a note counts whose process may still be there: one that was suspended for longer is not thought
of."""


@checked(frozen=True, slots=True, config=ConfigDict(extra="forbid", strict=True))
class Drop:
    """Who is about to delete a copy of `pack` (its key), on which host and boot, since when (by that host's clock)."""

    pack: str
    host: str
    boot: str
    pid: Pid
    time: Instant


_KIND = RecordKind(layout.DROPS, layout.DROP_MAGIC, layout.DROP_SEAL, TypeAdapter(Drop))
_under_way: set[str] = set()
"""Notes of this process whose deletions have not ended."""


@contextmanager
def announced(tier: Tier, keyring: Keyring, pack: str, clock: Clock) -> Iterator[None]:
    """Write the note, and remove it when the block has ended or failed; a process that dies leaves it.

    The block looks at its lease before each deletion. Any thread. Raises what the tier raises.
    """
    key = layout.drop_key(pack, secrets.token_hex(layout.NAME_BYTES))
    _under_way.add(key)
    try:
        _KIND.write(tier, keyring, key, Drop(pack, os.uname().nodename, boot(), os.getpid(), clock()))
        try:
            yield
        except VmcellarError:
            _remove(tier, key)
            raise
        _remove(tier, key)
    finally:
        _under_way.discard(key)


def found(tier: Tier, keyring: Keyring, now: float, *, clear: bool) -> Mapping[str, str]:
    """The packs (by key) that a process may still be deleting a copy of, and what to say of each.

    To be called after one's own lease was taken and stale ones were taken away. With `clear`, notes that do not count
    any more are removed. A damaged note counts until somebody removes it.
    """
    packs = {}
    for key, _ in tier.list(layout.DROPS):
        pack = layout.pack_of_drop(key)
        try:
            drop = _KIND.read(tier, keyring, key)
        except NotFoundError:  # its deletion has ended
            continue
        except IntegrityError as error:
            packs[pack] = f"{error.message}: somebody may be deleting a copy of it; if nobody is, remove that object"
            continue
        if not _is_over(key, drop, now):
            packs[pack] = f"a run on {drop.host}, pid {drop.pid}, was cut off as it was to delete a copy of it"
        elif clear:
            _remove(tier, key)
    return packs


def _is_over(key: str, drop: Drop, now: float) -> bool:
    if drop.boot == boot() and drop.pid == os.getpid():
        return key not in _under_way
    return has_ended(drop.boot, drop.pid) or drop.time + KEPT < now


def _remove(tier: Tier, key: str) -> None:
    with suppress(NotFoundError):
        tier.delete(key)
