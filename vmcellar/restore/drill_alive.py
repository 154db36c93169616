"""Waiting for evidence of life: the guest agent, then text on the serial console, then a screen that is not blank."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import libvirt

from vmcellar.config.drill import Drill
from vmcellar.progress import CancelToken
from vmcellar.repository.evidence import Alive
from vmcellar.restore import drill_domain
from vmcellar.sources.guest_agent import POLL_SECONDS, Agent


@dataclass(frozen=True, slots=True)
class Life:
    """What was seen: `sign` is empty when nothing was, `found` says it in words."""

    sign: Alive
    found: str
    screen: bytes = b""


class Watch:
    """One started VM. One thread; the signs are looked for one after the other, each with its limit."""

    def __init__(self, domain: libvirt.virDomain, folder: Path, rules: Drill, cancel: CancelToken) -> None:
        self._domain = domain
        self._folder = folder
        self._rules = rules
        self._cancel = cancel
        self._started = time.monotonic()
        self._screen = b""

    def life(self) -> Life:
        """Wait for the first sign; CancelledError when stopped."""
        signs: list[tuple[Alive, int, bool]] = [
            ("agent", self._rules.agent, drill_domain.has_agent(self._domain.XMLDesc())),
            ("serial", self._rules.serial, True),
            ("screen", self._rules.screen, True),
        ]
        for sign, limit, possible in signs:
            if possible and sign in self._rules.accept:
                found = self._wait(sign, limit)
                if found:
                    return Life(sign, found, self._picture())
                if ended := self._ended():
                    return Life("", f"{ended} {self._since()} after its start", self._screen)
        return Life("", f"nothing within {self._since()}", self._picture())

    def _wait(self, sign: Alive, limit: float) -> str:
        deadline = time.monotonic() + limit
        while not self._ended():
            found = self._look(sign)
            if found:
                return found
            if time.monotonic() > deadline:
                return ""
            self._cancel.check()
            time.sleep(POLL_SECONDS)
        return ""

    def _look(self, sign: Alive) -> str:
        if sign == "agent":
            return f"the agent answered after {self._since()}" if Agent(self._domain).answers() else ""
        if sign == "serial":
            text = self._rules.serial_text
            shown = text in drill_domain.serial_text(self._folder)
            return f'"{text}" on the serial console after {self._since()}' if shown else ""
        return f"a screen that is not blank after {self._since()}" if not drill_domain.is_blank(self._picture()) else ""

    def _picture(self) -> bytes:
        if not self._ended():
            self._screen = drill_domain.screenshot(self._domain.connect(), self._domain) or self._screen
        return self._screen

    def _ended(self) -> str:
        """In words why the guest can show no more life; empty while it may. A disk served in vain pauses its VM."""
        try:
            if self._domain.state() == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR]:
                return "the VM was stopped as a disk could not be read,"
            return "" if self._domain.isActive() else "the VM ended"
        except libvirt.libvirtError:
            return "the VM ended"

    def _since(self) -> str:
        return f"{time.monotonic() - self._started:.1f} s"
