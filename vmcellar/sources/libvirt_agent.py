"""Freeze and thaw a guest's file systems through its agent, so that it never stays frozen (pitfall 17)."""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import libvirt

from vmcellar.errors import VmcellarError

log = logging.getLogger(__name__)

AGENT_CHANNEL = "org.qemu.guest_agent.0"
KEEP_THAWING_SECONDS = 600
THAW_INTERVAL_SECONDS = 1.0
EXIT_SECONDS = 120
"""How long a process that wants to end waits for a thaw that is still owed: a freeze that took longer than its limit,
because the guest had much to write, ends frozen, and nobody would be there until the next backup.
"""


def agent_missing(xml: str) -> str:
    """Why the guest agent cannot be asked, from the live domain XML; empty when it is connected."""
    for target in ET.fromstring(xml).iterfind("devices/channel/target"):  # noqa: S314
        if target.get("name") == AGENT_CHANNEL:
            return "" if target.get("state") == "connected" else "the guest agent does not run in the guest"
    return "the VM has no guest agent channel"


def _stopped(domain: libvirt.virDomain) -> str:
    """Why no agent could answer though libvirt may call it connected: nothing of the guest runs; else empty."""
    return _STOPPED.get(domain.state()[0], "")


_STOPPED = {
    libvirt.VIR_DOMAIN_PAUSED: "the VM is paused",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "the guest is suspended",
}


class Quiesce:
    """One freeze and its thaw.

    The freeze command gets `timeout` seconds and the guest stands still no longer than that: a timer thaws it even
    while libvirt is stuck in another call. A marker file lies where `reconcile` finds it from before the freeze until
    a thaw is confirmed, so that a guest frozen by a killed process is thawed by the next one. When the agent does not
    answer, a thread goes on asking for a thaw for ten minutes: a hung agent may still freeze the guest when it wakes
    up.
    """

    def __init__(
        self,
        domain: libvirt.virDomain,
        marker: Path,
        timeout: float,
        find: Callable[[], libvirt.virDomain | None] | None = None,
    ) -> None:
        """For `domain`; `marker` is created and removed; `timeout` in seconds. `find` gives the domain over a new
        connection when a thaw failed: the network to another host may break while its guest is frozen.
        """
        self._find = find
        self._domain = domain
        self._marker = marker
        self._timeout = timeout
        self._lock = threading.Lock()
        self._guard: threading.Timer | None = None
        self._frozen_at: float | None = None
        self._due = False
        self.seconds = 0.0
        self.reason = "not frozen yet"

    @property
    def quiesced(self) -> bool:
        """Whether the guest stood still from the freeze to the thaw that the caller asked for."""
        return not self.reason

    def freeze(self) -> None:
        """Freeze all file systems of the guest. A refusal is no error: `reason` then says why it is not quiesced."""
        missing = agent_missing(self._domain.XMLDesc(0)) or _stopped(self._domain)
        if missing:
            self.reason = missing
            return
        if is_thawing(self._marker):
            self.reason = "the thaw of an earlier freeze is not confirmed yet"  # it would end this freeze at any time
            return
        self._marker.touch()
        self._due = True
        self._frozen_at = time.monotonic()
        try:
            self._domain.agentSetResponseTimeout(max(1, int(self._timeout)))
            frozen = self._domain.fsFreeze()
        except libvirt.libvirtError as error:
            self.reason = f"the freeze failed: {error}"
            self.thaw()
            return
        self.reason = "" if frozen else "the guest agent froze no file system"
        self._guard = threading.Timer(self._timeout, self._too_long)
        self._guard.daemon = True
        self._guard.start()

    def thaw(self) -> None:
        """Let the guest go on, also when the freeze failed. Idempotent; never raises; waits for a dead agent once."""
        if self._guard is not None:
            self._guard.cancel()
        if is_thawing(self._marker):
            return
        error = self._try_thaw()
        if error:
            self.reason = self.reason or f"the thaw was not confirmed: {error}"
            _thawing.add(self._marker)
            thread = threading.Thread(target=self._keep_thawing, daemon=True, name="vmcellar-thaw")
            thread.start()
            atexit.register(_wait_for, thread, self._domain.name())

    def _too_long(self) -> None:
        with self._lock:
            self.reason = f"the instant was not reached within {self._timeout:.0f} s of the freeze; thawed before it"
        self.thaw()

    def _try_thaw(self) -> str:
        """Thaw once; why it is not confirmed, or empty."""
        with self._lock:
            if not self._due:
                return ""
            problem = thaw(self._domain)
            if problem:
                self._look_again()
                return problem
            self._due = False
            if self._frozen_at is not None:
                self.seconds = time.monotonic() - self._frozen_at
            self._marker.unlink(missing_ok=True)
            return ""

    def _look_again(self) -> None:
        with contextlib.suppress(VmcellarError):
            found = self._find() if self._find else None
            self._domain = found or self._domain

    def _keep_thawing(self) -> None:
        deadline = time.monotonic() + KEEP_THAWING_SECONDS
        try:
            while time.monotonic() < deadline:
                time.sleep(THAW_INTERVAL_SECONDS)
                if not self._try_thaw():
                    return
        finally:
            _thawing.discard(self._marker)
        log.warning("%s: the guest agent never confirmed a thaw; check the guest", self._domain.name())


def _wait_for(thread: threading.Thread, vm: str) -> None:
    if thread.is_alive():
        log.warning("%s: the guest has not confirmed its thaw: waiting for that, at most %d s", vm, EXIT_SECONDS)
        thread.join(EXIT_SECONDS)


_thawing: set[Path] = set()
"""The markers of guests that a thread of this process goes on thawing: each further caller would wait five seconds."""


def is_thawing(marker: Path) -> bool:
    """Whether a thread of this process goes on asking the guest of this marker's capture to thaw."""
    return marker in _thawing


def thaw(domain: libvirt.virDomain) -> str:
    """Ask the agent to thaw; why it is not confirmed, or empty. A VM that does not run needs no thaw."""
    try:
        if domain.isActive():
            domain.agentSetResponseTimeout(5)
            domain.fsThaw()
            domain.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK)
    except libvirt.libvirtError as error:
        return "" if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN else str(error)
    return ""
