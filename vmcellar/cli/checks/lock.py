"""Whether a tier's lock holds: a locked probe is written, and attacked with all that this host's credentials can do."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from uuid import uuid4

from vmcellar.cli.checks.finding import Finding, failed
from vmcellar.errors import VmcellarError
from vmcellar.tiers.base import LockedError, Locks, Tier

PROBE_SECONDS = 60.0
"""So long a probe is locked; a later doctor takes it away."""

_PROBES = "probe/locked-"
_SHOWN = 3


def check_lock(what: str, opened: Callable[[], Tier]) -> Finding:
    """A probe that goes is an alarm; so are objects that somebody deleted on top of their lock."""
    try:
        tier = opened()
        if not isinstance(tier, Locks):
            return Finding(what, "failed", f"{tier!r} locks nothing", "take `lock:` from this tier")
        _clear(tier)
        broken = _attacked(tier)
        hidden = tier.hidden()
    except VmcellarError as error:
        return failed(what, error)
    if broken:
        remedy = "use mode: compliance, or take s3:BypassGovernanceRetention from this key; see docs/tiers.md"
        return Finding(what, "failed", f"a locked probe did not hold: {broken}", remedy)
    if hidden:
        names = ", ".join(hidden[:_SHOWN])
        detail = f"{len(hidden)} locked objects were deleted or written over, such as {names}: who did that?"
        return Finding(what, "failed", detail, f"vmcellar tiers undelete {tier.name}")
    how = "renamed or written over; root can take the flag off" if tier.kind == "local" else "with or without a bypass"
    return Finding(what, "ok", f"{tier!r}: a locked probe could not be deleted, {how}")


def _attacked(tier: Tier) -> str:
    probe = f"{_PROBES}{uuid4().hex}"
    tier.put(probe, probe.encode())
    assert isinstance(tier, Locks)  # noqa: S101  (the caller looked; for mypy)
    tier.lock_until([probe], time.time() + PROBE_SECONDS)
    broken = tier.attack(probe)
    if broken:
        with suppress(VmcellarError):
            tier.delete(probe)
        return broken
    with suppress(LockedError):
        tier.delete(probe)
        return "vmcellar's own delete took it"
    return "" if tier.get(probe) == probe.encode() else "it was changed"


def _clear(tier: Tier) -> None:
    for key, _ in list(tier.list(_PROBES)):
        with suppress(LockedError):
            tier.delete(key)
