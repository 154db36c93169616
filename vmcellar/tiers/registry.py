"""From a storage string of the configuration to a tier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vmcellar.errors import PermanentError
from vmcellar.tiers.base import Tier
from vmcellar.tiers.local import LocalTier


def _local(name: str, storage: str) -> Tier:
    return LocalTier(Path(storage.removeprefix("file::")), name=name)


def _later(name: str, storage: str) -> Tier:
    raise PermanentError(
        f"tier {name}: {storage} cannot be used yet, only local directories can",
        hint=f"give tier {name} a directory, such as /srv/vmcellar; RADOS and S3 come with a later version",
    )


_OPENERS: dict[str, Callable[[str, str], Tier]] = {"file::": _local, "ceph::": _later, "s3://": _later}


def open_tier(name: str, storage: str) -> Tier:
    """The tier at `storage`: a directory's path, or a string with a scheme such as `ceph::pool/prefix`.

    Raises PermanentError when the place is missing or of a kind that this version does not have.
    """
    for scheme, opener in _OPENERS.items():
        if storage.startswith(scheme):
            return opener(name, storage)
    if "://" in storage or "::" in storage:
        raise PermanentError(f"tier {name}: unknown kind of storage {storage}", hint="give a directory's path")
    return _local(name, storage)
