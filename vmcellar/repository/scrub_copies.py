"""A deep check where a pack may lie on several tiers: each copy is read, as a damaged one is no second copy."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vmcellar.errors import CancelledError, TransientError, VmcellarError
from vmcellar.progress import CancelToken
from vmcellar.repository.packs import Location, PackReader, PackRef, groups
from vmcellar.tiers.base import ArchivedError, Copies, Tier

if TYPE_CHECKING:
    from vmcellar.crypto.base import Keyring
    from vmcellar.policy.tier_pace import TierPace

_ROTTEN = (errno.EIO, errno.EBADMSG, errno.EUCLEAN)


def places(tier: Tier, pack: PackRef) -> Sequence[Tier]:
    """Where to read the pack: each place that has it, if there are several, else the tier itself."""
    copies = tier.copies(pack.key) if isinstance(tier, Copies) else ()
    return copies if len(copies) > 1 else [tier]


def contents(where: Sequence[Tier], keyring: Keyring, pack: PackRef) -> list[Location]:
    """What the pack itself says that it holds, of the first place where it can be read; else the error of the first."""
    first: VmcellarError | None = None
    for place in where:
        try:
            with PackReader(place, pack.key, keyring) as reader:
                found = reader.locations()
                reader.check_padding()
                return found
        except CancelledError:
            raise
        except VmcellarError as error:
            first = first or error
    raise first or AssertionError(pack.key)


def damaged_copies(
    where: Sequence[Tier], keyring: Keyring, pack: PackRef, pace: TierPace, cancel: CancelToken
) -> list[tuple[str, str]]:
    """The places whose copy cannot be read in full, each with the reason. Of one place alone nothing is said, and what
    must be thawed first is not read. Reads as fast as `pace` lets it.
    """
    if len(where) < 2:
        return []
    reasons = ((place.name, _problem(place, keyring, pack, pace, cancel)) for place in where)
    return [(name, reason) for name, reason in reasons if reason]


def _problem(place: Tier, keyring: Keyring, pack: PackRef, pace: TierPace, cancel: CancelToken) -> str:
    try:
        with PackReader(place, pack.key, keyring) as reader:
            found = reader.locations()
            reader.check_padding()
            for group in groups(found):
                cancel.check()
                pace.take(place.name, group.end - group.start, cancel)
                for _ in reader.read_group(group):
                    pass
    except CancelledError:
        raise
    except ArchivedError:
        return ""
    except VmcellarError as error:
        return error.message
    return ""


def is_away(error: VmcellarError) -> bool:
    """Whether the error says nothing of what is stored, as its place could not be asked. A device that does not give
    back what it holds has damaged it, though the next try may succeed.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _ROTTEN:
            return False
        cause = cause.__cause__
    return isinstance(error, TransientError)


def damaged_beside_whole(tier: Tier, key: str, is_whole: Callable[[Tier, str], bool]) -> list[Tier]:
    """The places whose copy is damaged, if another was read and found whole just now, else none. Of a copy that must be
    thawed first, or cannot be reached now, nothing is known: it is not among them, and is not the other one.
    """
    found = tier.copies(key) if isinstance(tier, Copies) else ()
    whole, damaged = 0, []
    for place in found:
        try:
            if is_whole(place, key):
                whole += 1
            else:
                damaged.append(place)
        except (ArchivedError, TransientError, OSError):
            continue
    return damaged if whole else []
