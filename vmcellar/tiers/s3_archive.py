"""Archive classes of S3: which objects can be read now, and requests to thaw those that cannot.

After the S3 API reference: RestoreObject, and the header x-amz-restore of HeadObject.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from vmcellar.config.prices import ARCHIVE_CLASSES, Speed
from vmcellar.tiers.base import ArchivedError, ArchiveState
from vmcellar.tiers.s3_errors import ThawingError

if TYPE_CHECKING:
    from vmcellar.tiers.s3 import S3Tier

REQUESTS_AT_ONCE = 16
"""Of one batch; Amazon takes up to 1,000 requests to thaw per second."""

_TIERS: dict[Speed, str] = {"bulk": "Bulk", "standard": "Standard", "expedited": "Expedited"}
_EXPIRY = re.compile(r'expiry-date="([^"]+)"')

T = TypeVar("T")


def states(tier: S3Tier, keys: Iterable[str]) -> dict[str, ArchiveState]:
    """See Archive.thaw_state."""
    found = for_each(keys, lambda key: _state(tier.name, key, tier.head(key)))
    return {state.key: state for state in found}


def thaw(tier: S3Tier, keys: Iterable[str], days: int, speed: Speed) -> None:
    """See Archive.thaw."""
    wanted = {"Days": days, "GlacierJobParameters": {"Tier": _TIERS[speed]}}

    def once(key: str) -> None:
        try:
            tier.ask(key, lambda: tier.client.restore_object(**tier.place(key), RestoreRequest=wanted))
        except (ThawingError, ArchivedError):
            return  # under way already, or in no archive class, which S3 answers with the same InvalidObjectState

    for_each(keys, once)


def _state(tier: str, key: str, head: dict[str, Any]) -> ArchiveState:
    size, restore = int(head["ContentLength"]), str(head.get("Restore", ""))
    if head.get("StorageClass", "") not in ARCHIVE_CLASSES:
        return ArchiveState(key, size, tier, "readable")
    if 'ongoing-request="true"' in restore:
        return ArchiveState(key, size, tier, "thawing")
    if expiry := _EXPIRY.search(restore):
        return ArchiveState(key, size, tier, "thawed", parsedate_to_datetime(expiry[1]).timestamp())
    return ArchiveState(key, size, tier, "archived")


def for_each(keys: Iterable[str], call: Callable[[str], T]) -> list[T]:
    """What `call` gives for each key. The first error is raised, once all calls that had begun have ended."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="s3-archive") as pool:
        calls = [pool.submit(call, key) for key in dict.fromkeys(keys)]
        done, pending = wait(calls, return_when=FIRST_EXCEPTION)
        for future in pending:
            future.cancel()
        wait(calls)
        for future in done:
            future.result()
        return [future.result() for future in calls]
