"""From a tier of the configuration to the tier itself. What a kind needs is imported when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from vmcellar.config.tiers import TierSettings
from vmcellar.errors import PermanentError
from vmcellar.tiers.base import Tier
from vmcellar.tiers.cellar import CellarTier
from vmcellar.tiers.local import LocalTier, make_directory
from vmcellar.tiers.local_errors import translate
from vmcellar.tiers.mark import ReadOnlyTier, check_mark, is_mirror, write_mark


class Places(Protocol):
    """What a configuration tells about tiers; `vmcellar.config.Config` does."""

    @property
    def state(self) -> Path:
        """Where packs for tiers that are not local may be built."""
        ...

    def hot_tier(self) -> TierSettings:
        """Where the hot tier is; UsageError when there is none."""
        ...

    def other_tiers(self) -> Mapping[str, TierSettings]:
        """The tiers behind it by name, nearest first."""
        ...


def open_tiers(places: Places) -> Tier:
    """All tiers of a configuration as one. A mirror in the place of hot is opened to be read only.

    Raises as `open_tier` does for hot; each of the others is opened when it is first needed, and raises then.
    """
    hot = open_tier("hot", places.hot_tier(), places.state)
    others = places.other_tiers()
    front = ReadOnlyTier(hot) if is_mirror(hot) else hot
    return CellarTier(front, {name: partial(_open_other, hot, places, name) for name in others}) if others else front


def _open_other(hot: Tier, places: Places, name: str) -> Tier:
    tier = open_tier(name, places.other_tiers()[name], places.state)
    check_mark(hot, tier)
    return tier


def add_tier(places: Places, name: str) -> bool:
    """Make the place of a warm or cold tier one of this repository's tiers; False when it was one. See `write_mark`."""
    hot = open_tier("hot", places.hot_tier(), places.state)
    return write_mark(hot, make_tier(name, places.other_tiers()[name], places.state))


def open_tier(name: str, settings: TierSettings, state: Path) -> Tier:
    """The tier that `settings` name; packs for one that is not local are built below `state` unless they say where.

    Raises PermanentError when the place is missing, or refuses who we are; TransientError when it does not answer.
    """
    if settings.kind == "local":
        return LocalTier(settings.directory, name=name, lock_keep=settings.lock_keep)
    staging = settings.staging or state / "staging" / name
    if settings.kind == "s3":
        from vmcellar.tiers.s3 import S3Tier  # noqa: PLC0415  (boto3 takes a third of a second)

        return S3Tier(settings, name=name, staging=staging)
    from vmcellar.tiers.rados import RadosTier  # noqa: PLC0415  (needs Debian's python3-rados)

    return RadosTier(settings, name=name, staging=staging)


def make_tier(name: str, settings: TierSettings, state: Path) -> Tier:
    """The same, and a local directory is made if need be; buckets and pools are made by who runs them."""
    if settings.kind == "local":
        try:
            make_directory(settings.directory)
        except (FileExistsError, NotADirectoryError) as error:
            raise PermanentError(
                f"{error.filename or settings.directory}: this is a file, not a directory",
                hint="name a directory; it is made if need be",
            ) from error
        except FileNotFoundError as error:  # from a file system whose folders the kernel makes
            raise PermanentError(
                f"{settings.directory}: no directory can be made there", hint="name one on a disk"
            ) from error
        except OSError as error:
            raise translate(error, str(settings.directory)) from error
    return open_tier(name, settings, state)
