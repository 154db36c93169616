"""Connections to libvirt that end with an error when the daemon hangs, instead of waiting for it for ever.

libvirt's client library asks a silent daemon whether it is still there, and closes the connection when that is not
answered; calls that wait then fail. Its timers run in the event loop that is started here once per process (libvirt's
virConnectSetKeepAlive and virEventRunDefaultImpl).
"""

from __future__ import annotations

import contextlib
import threading
from functools import cache

import libvirt

from vmcellar.errors import TransientError

INTERVAL_SECONDS = 5
MISSED = 5
"""A daemon is given up after INTERVAL_SECONDS * (MISSED + 1): as long as libvirtd itself, by default, waits for us."""

OPEN_SECONDS = 15.0
"""How long a daemon may take to let us in: keepalive begins only after that."""


def open_alive(uri: str) -> libvirt.virConnect:
    """A connection whose calls fail when the daemon hangs. Any thread.

    libvirtError as libvirt's own open; TransientError when the daemon takes the connection and then says nothing.
    """
    _run_events()
    opening = _Opening(uri)
    opening.join(OPEN_SECONDS)
    connection = opening.take()
    with contextlib.suppress(libvirt.libvirtError):  # drivers within this process have nothing to ask
        connection.setKeepAlive(INTERVAL_SECONDS, MISSED)
    return connection


class _Opening(threading.Thread):
    """One call of libvirt.open in a thread of its own, as it has no time limit."""

    def __init__(self, uri: str) -> None:
        super().__init__(name="libvirt-open", daemon=True)
        self._uri = uri
        self._lock = threading.Lock()
        self._late = False
        self._connection: libvirt.virConnect | None = None
        self._error: libvirt.libvirtError | None = None
        self.start()

    def run(self) -> None:
        """Open; a connection that nobody waits for any more is closed again."""
        try:
            connection = libvirt.open(self._uri)
        except libvirt.libvirtError as error:
            self._error = error
            return
        with self._lock:
            if not self._late:
                self._connection = connection
                return
        with contextlib.suppress(libvirt.libvirtError):
            connection.close()

    def take(self) -> libvirt.virConnect:
        """What came of it until now; TransientError when nothing has."""
        with self._lock:
            if self._connection is not None:
                return self._connection
            self._late = True
        if self._error is not None:
            raise self._error
        raise TransientError(
            f"libvirt at {self._uri} takes connections but did not answer within {OPEN_SECONDS:.0f} s",
            hint="its daemon hangs: see `journalctl -u libvirtd`, then `systemctl restart libvirtd` (VMs run on)",
        )


@cache
def _run_events() -> None:
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_events, name="libvirt-events", daemon=True).start()


def _events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()
