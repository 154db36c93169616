"""From a tier of the configuration to the tier itself. What a kind needs is imported when it is used."""

from __future__ import annotations

from pathlib import Path

from vmcellar.config.tiers import TierSettings
from vmcellar.errors import PermanentError
from vmcellar.tiers.base import Tier
from vmcellar.tiers.local import LocalTier, make_directory


def open_tier(name: str, settings: TierSettings, state: Path) -> Tier:
    """The tier that `settings` name; packs for one that is not local are built below `state` unless they say where.

    Raises PermanentError when the place is missing, or refuses who we are; TransientError when it does not answer.
    """
    if settings.kind == "local":
        return LocalTier(settings.directory, name=name)
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
        except OSError as error:
            raise PermanentError(
                f"{settings.directory}: {error.strerror}", hint="run as root, or name a directory that you may write"
            ) from error
    return open_tier(name, settings, state)
