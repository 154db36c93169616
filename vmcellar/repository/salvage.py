"""Read what is readable: every object of a group, or the error that stands in its way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypeVar

from vmcellar.errors import CancelledError, VmcellarError
from vmcellar.repository.packs import Group, Location, PackReader, PackRef, groups
from vmcellar.repository.read_ahead import at_once, is_near
from vmcellar.tiers.base import Copies, Tier

if TYPE_CHECKING:
    from vmcellar.crypto.base import Keyring
    from vmcellar.repository.open_packs import OpenPacks

T = TypeVar("T")


def read_each(tier: Tier, keyring: Keyring, group: Group) -> Iterator[tuple[Location, bytes | VmcellarError]]:
    """Each object of `group` in order with its checked bytes, or with the error of reading it.

    One read fetches the group. Once that or a check fails, the rest is read object by object: a bad sector or a flipped
    bit costs one object, and none where the tier has another copy of the pack. Bytes are valid as long as the caller
    keeps them. Any thread.
    """
    return _each(tier, keyring, group, lambda: _open(tier, keyring, group.objects[0]), PackReader.read_group)


def lend_each(
    tier: Tier, keyring: Keyring, group: Group, packs: OpenPacks
) -> Iterator[tuple[Location, bytes | memoryview | VmcellarError]]:
    """As `read_each`, but the pack may be open already in `packs`, and bytes are valid until the next object is asked
    for.
    """
    return _each(tier, keyring, group, lambda: packs.reader(group.objects[0].pack), PackReader.lend_group)


def _each(
    tier: Tier,
    keyring: Keyring,
    group: Group,
    opened: Callable[[], AbstractContextManager[PackReader]],
    read: Callable[[PackReader, Group], Iterator[tuple[Location, T]]],
) -> Iterator[tuple[Location, T | bytes | VmcellarError]]:
    done = 0
    try:
        with opened() as reader:
            for found, plain in read(reader, group):
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
        other = _from_another_copy(tier, keyring, found)
        return error if other is None else other


def _from_another_copy(tier: Tier, keyring: Keyring, found: Location) -> bytes | None:
    if isinstance(tier, Copies):
        for copy in tier.copies(found.pack.key):
            try:
                with _open(copy, keyring, found) as reader:
                    return reader.read(found)
            except CancelledError:
                raise
            except VmcellarError:
                continue
    return None


def read_all(tier: Tier, keyring: Keyring, pack: PackRef, objects: Sequence[Location]) -> dict[bytes, bytes]:
    """The checked bytes of objects of one pack, by id; the error of the first that no copy of the pack gives."""
    result: dict[bytes, bytes] = {}
    try:
        with PackReader(tier, pack.key, keyring, pack=pack) as reader:
            for group in groups(objects):
                result.update({found.chunk: plain for found, plain in reader.read_group(group)})
    except CancelledError:
        raise
    except VmcellarError:
        if not isinstance(tier, Copies):
            raise
        for found in objects:
            if found.chunk not in result:
                result[found.chunk] = _content(_read_alone(tier, keyring, found))
    return result


def read_packs(tier: Tier, keyring: Keyring, packs: Iterable[tuple[PackRef, list[Location]]]) -> dict[bytes, bytes]:
    """The same of several packs; many at once where each asks a server."""

    def read(part: tuple[PackRef, list[Location]]) -> dict[bytes, bytes]:
        return read_all(tier, keyring, *part)

    parts = map(read, packs) if is_near(tier) else at_once(read, list(packs))
    return {chunk: plain for part in parts for chunk, plain in part.items()}


def _content(read: bytes | VmcellarError) -> bytes:
    if isinstance(read, VmcellarError):
        raise read
    return read


def _open(tier: Tier, keyring: Keyring, found: Location) -> PackReader:
    return PackReader(tier, found.pack.key, keyring, pack=found.pack)
