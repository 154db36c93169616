"""Notes that a commit took its point back, for mirrors that had copied it (docs/repository-format.md, section 2).

A note is a name without content: the point, and a keyed digest of the very object that went, so nobody without a key
makes one, and it speaks of no other object, as of the same run's point that a later try committed. It is written when
the point is gone, and goes when there is a newer one: until then it is what tells such a point from one that hot lost.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from vmcellar.errors import VmcellarError
from vmcellar.repository.layout import NAME_BYTES, WITHDRAWN
from vmcellar.tiers.base import ExistsError, NotFoundError
from vmcellar.tiers.cellar import CellarTier

if TYPE_CHECKING:
    from vmcellar.crypto.base import Keyring
    from vmcellar.repository.repository import Repository
    from vmcellar.tiers.base import Tier

_log = logging.getLogger(__name__)


def note(repository: Repository, point: str, data: bytes) -> None:
    """Note that the point's object, which held `data`, was taken back. Does nothing where there is one tier; never
    raises: without the note a mirror that has the point stops moves until a newer one is there.
    """
    if not isinstance(repository.tier, CellarTier):
        return
    try:
        with suppress(ExistsError):
            repository.tier.put(key_of(repository.keyring, point, data), b"")
    except VmcellarError as error:
        _log.warning("that %s was taken back is not noted for mirrors: %s", point, error.message)


def was_taken_back(tier: Tier, keyring: Keyring, point: str, data: bytes) -> bool:
    """Whether `tier`, which is hot, notes that this very object of a point was taken back. Raises what it raises."""
    return tier.exists(key_of(keyring, point, data))


def clear(tier: Tier, newest: str) -> None:
    """Remove the notes of points older than `newest`, the newest point that there is."""
    for key, _ in tier.list(WITHDRAWN):
        if key < f"{WITHDRAWN}{newest}":
            with suppress(NotFoundError):
                tier.delete(key)


def key_of(keyring: Keyring, point: str, data: bytes) -> str:
    """The key of the note that this object of a point was taken back."""
    digest = keyring.chunk_id(b"a point that was taken back\n" + data)
    return f"{WITHDRAWN}{point}-{digest[:NAME_BYTES].hex()}"
