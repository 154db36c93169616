"""S3 object lock: a bucket whose versions cannot be deleted before a time. After the S3 User Guide, "Object Lock".

Such a bucket is versioned: a plain DELETE only lays a delete marker over the object, and a PUT a further version. Both
hide what is locked, and neither harms it. As objects here are never overwritten, the oldest version is the right one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from vmcellar.errors import PermanentError, VmcellarError
from vmcellar.tiers import s3_archive
from vmcellar.tiers.base import LOCKED, REVOCABLE, NotFoundError, is_locked_at_once, locked_error

if TYPE_CHECKING:
    from vmcellar.config.tiers import Lock
    from vmcellar.tiers.s3 import S3Tier

_NO_LOCKS = "make a bucket with it (aws s3api create-bucket --object-lock-enabled-for-bucket), or take `lock:` away"


def arguments(lock: Lock | None, key: str) -> dict[str, Any]:
    """What a put says so that the object is locked as soon as it is there."""
    if lock is None or not is_locked_at_once(key):
        return {}
    until = datetime.now(UTC) + timedelta(seconds=lock.keep or 0)
    return {"ObjectLockMode": lock.mode.upper(), "ObjectLockRetainUntilDate": until}


def check_bucket(tier: S3Tier) -> None:
    """PermanentError unless the bucket has object lock."""
    try:
        answer = tier.ask("", lambda: tier.client.get_object_lock_configuration(Bucket=tier.bucket))
    except VmcellarError as error:
        if "ObjectLockConfigurationNotFound" not in str(error):
            raise
        answer = {}
    if answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") != "Enabled":
        raise PermanentError(f"{tier!r}: its bucket has no object lock, which `lock:` asks for", hint=_NO_LOCKS)


def until_of(head: dict[str, Any]) -> float:
    """See Locks.locked_until, from what HEAD says."""
    if head.get("ObjectLockLegalHoldStatus") == "ON":
        return inf
    when = head.get("ObjectLockRetainUntilDate")
    return when.timestamp() if when else 0.0


def locked_until(tier: S3Tier, keys: Iterable[str]) -> dict[str, float]:
    """See Locks.locked_until. One request per object, many at once."""

    def once(key: str) -> tuple[str, float | None]:
        try:
            return key, until_of(tier.head(key))
        except NotFoundError:
            return key, None

    return {key: until for key, until in s3_archive.for_each(keys, once) if until is not None}


def lock_until(tier: S3Tier, keys: Iterable[str], until: float) -> None:
    """See Locks.lock_until. Two requests per object that is not locked for so long."""
    lock = tier.settings.lock
    if lock is None:
        return

    def once(key: str) -> None:
        head = tier.head(key)
        if until_of(head) >= until:
            return
        wanted = {
            "Mode": head.get("ObjectLockMode") or lock.mode.upper(),
            "RetainUntilDate": datetime.fromtimestamp(until, UTC),
        }
        tier.ask(key, lambda: tier.client.put_object_retention(**tier.place(key), Retention=wanted))

    s3_archive.for_each(keys, once)


def delete(tier: S3Tier, key: str, head: dict[str, Any]) -> None:
    """Delete the version that HEAD told of, so that nothing is left; LockedError when the place refuses.

    What `REVOCABLE` names is hidden by a delete marker then: a lifecycle rule of the bucket takes its version.
    """
    until = until_of(head)
    try:
        _delete_version(tier, key, head.get("VersionId", ""))
    except PermanentError as error:
        if not until or isinstance(error, NotFoundError):
            raise
        if not key.startswith(REVOCABLE):
            raise locked_error(tier, key, until) from error
        tier.ask(key, lambda: tier.client.delete_object(**tier.place(key)))


def _delete_version(tier: S3Tier, key: str, version: str, **more: bool) -> None:
    which = {"VersionId": version} if version else {}
    tier.ask(key, lambda: tier.client.delete_object(**tier.place(key), **which, **more))


def hidden(tier: S3Tier, *, keys: bool) -> list[str]:
    """See Locks.hidden. A listing of all versions."""
    return [key for key in _covered(tier) if keys or not key.startswith(REVOCABLE)]


def undelete(tier: S3Tier, keys: Iterable[str]) -> None:
    """See Locks.undelete: delete markers and versions above the oldest are removed."""
    covered = _covered(tier)
    for key in keys:
        for version in covered.get(key, ()):
            _delete_version(tier, key, version)


def _covered(tier: S3Tier) -> dict[str, list[str]]:
    """Of each object whose oldest version is locked and is not what a read gives: all that lies above that version."""
    versions, markers = _versions(tier)
    covered = {}
    for key, found in versions.items():
        *newer, (oldest, is_latest) = found
        if is_latest or not key.startswith(LOCKED):
            continue
        with suppress(NotFoundError):
            head = tier.ask(key, partial(tier.client.head_object, **tier.place(key), VersionId=oldest))
            if until_of(head) > datetime.now(UTC).timestamp():
                covered[key] = [*markers[key], *(version for version, _ in newer)]
    return covered


def _versions(tier: S3Tier) -> tuple[dict[str, list[tuple[str, bool]]], dict[str, list[str]]]:
    """Of each key its versions, newest first as S3 lists them, whether it is what a read gives; and its markers."""
    versions: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    markers: dict[str, list[str]] = defaultdict(list)
    for prefix in LOCKED:
        where: dict[str, str] = {}
        while True:
            place = {"Bucket": tier.bucket, "Prefix": tier.prefix + prefix, **where}
            page = tier.ask(prefix, partial(tier.client.list_object_versions, **place))
            for each in page.get("Versions", []):
                versions[tier.key_of(str(each["Key"]))].append((str(each["VersionId"]), bool(each["IsLatest"])))
            for each in page.get("DeleteMarkers", []):
                markers[tier.key_of(str(each["Key"]))].append(str(each["VersionId"]))
            if not page["IsTruncated"]:
                break
            where = {"KeyMarker": page["NextKeyMarker"], "VersionIdMarker": page["NextVersionIdMarker"]}
    return versions, markers


def attack(tier: S3Tier, key: str) -> str:
    """See Locks.attack: the version deleted, its time cut short, and the version deleted with the right to bypass."""
    head = tier.head(key)
    version, mode = str(head.get("VersionId", "")), head.get("ObjectLockMode")
    shorter = {"Mode": mode, "RetainUntilDate": datetime.now(UTC) + timedelta(seconds=1)}
    arguments = {**tier.place(key), "VersionId": version, "Retention": shorter, "BypassGovernanceRetention": True}
    for name, attempt in (
        ("its version was deleted", partial(_delete_version, tier, key, version)),
        (
            "its version was deleted by a key that may bypass governance",
            partial(_delete_version, tier, key, version, BypassGovernanceRetention=True),
        ),
        ("its time was cut short", partial(tier.ask, key, partial(tier.client.put_object_retention, **arguments))),
    ):
        try:
            attempt()
        except PermanentError:
            continue
        return name
    return ""
