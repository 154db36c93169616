"""The mark that a warm or cold tier carries: which repository it belongs to (docs/repository-format.md, section 2).

Without it a directory whose disk is not mounted looks like an empty tier, and would be taken for one that lost its
packs, or be filled below the mount point. It is also what tells a mirror from a repository.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from uuid import uuid4

from blake3 import blake3

from vmcellar.errors import PermanentError
from vmcellar.tiers.base import NotFoundError

if TYPE_CHECKING:
    from vmcellar.tiers.base import Tier, TierReader

MARK_KEY = "mirror"
CONFIG_KEY = "config"
"""The one object that every repository has, and that never changes."""


def write_mark(hot: Tier, other: Tier) -> bool:
    """Make `other` a tier of the repository on `hot`; False when it was one already.

    PermanentError when it belongs to another repository, is one itself, or holds objects that nobody vouches for.
    """
    wanted = _mark_of(hot)
    try:
        found = other.get(MARK_KEY)
    except NotFoundError:
        _refuse_used(other)
        other.put(MARK_KEY, wanted)
        return True
    if found != wanted:
        raise _foreign(other)
    return False


def check_mark(hot: Tier, other: Tier) -> None:
    """PermanentError unless `other` is a tier of the repository on `hot`."""
    try:
        found = other.get(MARK_KEY)
    except NotFoundError as error:
        raise PermanentError(
            f"{other!r} does not carry the mark of this repository",
            hint=f"mount it; if it is new, or what it held is lost for good, type `vmcellar tiers add {other.name}`",
        ) from error
    if found != _mark_of(hot):
        raise _foreign(other)


def no_repository(tier: Tier) -> PermanentError:
    """The error for a place without a repository. Its file system may just not be mounted: a repository that is made
    below the mount point then would be a second one, without the points of the first.
    """
    look = (
        "see with `findmnt` whether its file system is mounted"
        if tier.kind == "local"
        else "see whether it is the right place"
    )
    return PermanentError(
        f"{tier!r} holds no repository", hint=f"{look}; only where there never was one, type `vmcellar init`"
    )


def refuse_same_place(tiers: Sequence[Tier]) -> None:
    """PermanentError when two of these lead to the same place, by whatever names: a copy there is no second copy, and
    deleting either deletes both. A small object is written to each in turn, and looked for on the others.
    """
    for i, tier in enumerate(tiers):
        probe = f"probe/{uuid4().hex}"
        tier.put(probe, probe.encode())
        try:
            for other in tiers[i + 1 :]:
                if other.exists(probe):
                    raise PermanentError(
                        f"{tier!r} and {other!r} are the same place: nothing is moved",
                        hint="name different places under tiers: in vmcellar.yaml; a link or a second mount is none",
                    )
        finally:
            with suppress(NotFoundError):
                tier.delete(probe)


def is_mirror(tier: Tier) -> bool:
    """Whether the place carries the mark of a warm or cold tier."""
    return tier.exists(MARK_KEY)


def promote(tier: Tier) -> None:
    """Make a mirror the repository itself, for good; PermanentError when it is no whole mirror."""
    if not is_mirror(tier):
        raise PermanentError(f"{tier!r} is no mirror: there is nothing to promote", hint="see `vmcellar tiers`")
    if not tier.exists(CONFIG_KEY):
        raise PermanentError(f"{tier!r}: its mirror was never completed", hint="name another tier as `hot:`")
    tier.delete(MARK_KEY)


def _mark_of(hot: Tier) -> bytes:
    return blake3(hot.get(CONFIG_KEY)).hexdigest().encode()


def _refuse_used(other: Tier) -> None:
    if other.exists(CONFIG_KEY):
        raise PermanentError(
            f"{other!r} holds a repository of its own", hint="name another place for this tier in vmcellar.yaml"
        )
    if next(iter(other.list("data/")), None) is not None:
        raise PermanentError(
            f"{other!r} holds packs, but not the mark of a repository", hint="name an empty place for this tier"
        )


def _foreign(other: Tier) -> PermanentError:
    return PermanentError(
        f"{other!r} belongs to another repository", hint="name the right place for this tier in vmcellar.yaml"
    )


class ReadOnlyTier:
    """A mirror in the place of the hot tier that is lost or away: it is read, and nothing is written to it.

    What was written there would be taken for left-overs once the hot tier is back.
    """

    def __init__(self, inner: Tier) -> None:
        self.inner = inner
        self.name, self.kind = inner.name, inner.kind

    def __repr__(self) -> str:
        return f"{self.inner!r}, a mirror"

    def _refuse(self) -> NoReturn:
        raise PermanentError(
            f"{self!r}: is read only",
            hint="if the hot tier is lost for good, `vmcellar tiers promote` makes the mirror the repository",
        )

    def staging_dir(self) -> Path:
        """See Tier.staging_dir."""
        return self.inner.staging_dir()

    def adopt(self, path: Path, key: str) -> None:
        """Refused."""
        del path, key
        self._refuse()

    def put(self, key: str, data: bytes) -> None:
        """Refused."""
        del key, data
        self._refuse()

    def get(self, key: str) -> bytes:
        """See Tier.get."""
        return self.inner.get(key)

    def read(self, key: str, offset: int, length: int) -> bytes:
        """See Tier.read."""
        return self.inner.read(key, offset, length)

    def open(self, key: str) -> TierReader:
        """See Tier.open."""
        return self.inner.open(key)

    def size(self, key: str) -> int:
        """See Tier.size."""
        return self.inner.size(key)

    def exists(self, key: str) -> bool:
        """See Tier.exists."""
        return self.inner.exists(key)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """See Tier.list."""
        return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        """Refused."""
        del key
        self._refuse()

    def free_bytes(self) -> int | None:
        """See Tier.free_bytes."""
        return self.inner.free_bytes()

    def describe(self) -> str:
        """See Tier.describe."""
        return f"{self.inner.describe()} (a mirror, read only)"

    def clear_unfinished(self, older_than: float) -> Sequence[str]:
        """Refused."""
        del older_than
        self._refuse()
