"""Read what is readable: every object of a group, or the error that stands in its way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vmcellar.errors import CancelledError, VmcellarError
from vmcellar.repository.packs import Group, Location, PackReader
from vmcellar.tiers.base import Tier

if TYPE_CHECKING:
    from vmcellar.crypto.base import Keyring


def read_each(tier: Tier, keyring: Keyring, group: Group) -> Iterator[tuple[Location, bytes | VmcellarError]]:
    """Each object of `group` in order with its checked bytes, or with the error of reading it.

    One read fetches the group. Once that or a check fails, the rest is read object by object: a bad sector or a flipped
    bit costs one object. Bytes are valid as long as the caller keeps them. Any thread.
    """
    done = 0
    try:
        with _open(tier, keyring, group.objects[0]) as reader:
            for found, plain in reader.read_group(group):
                yield found, plain
                done += 1
    except CancelledError:
        raise
    except VmcellarError:
        for found in group.objects[done:]:
            yield found, _read_alone(tier, keyring, found)


def _read_alone(tier: Tier, keyring: Keyring, found: Location) -> bytes | VmcellarError:
    try:
        with _open(tier, keyring, found) as reader:
            return reader.read(found)
    except CancelledError:
        raise
    except VmcellarError as error:
        return error


def _open(tier: Tier, keyring: Keyring, found: Location) -> PackReader:
    return PackReader(tier, found.pack.key, keyring, pack=found.pack)
