"""What a guest's agent is asked beside freezing, in drills and by hooks.

Source: QEMU's "QEMU Guest Agent Protocol Reference".
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import libvirt
import libvirt_qemu

from vmcellar.errors import TransientError
from vmcellar.progress import CancelToken

ANSWER_SECONDS = 10
PING_SECONDS = 2
POLL_SECONDS = 0.2
_PIECE = 1 << 20


class AgentError(TransientError):
    """The agent did not answer, or refused; the message is libvirt's."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A command's end: `code` is None when it did not end in time or was killed."""

    code: int | None
    output: str


class Agent:
    """The agent of one running domain. One thread; every call raises AgentError when there is no answer."""

    def __init__(self, domain: libvirt.virDomain) -> None:
        self._domain = domain

    def answers(self) -> bool:
        """Whether it answers within two seconds."""
        try:
            self._ask("guest-ping", PING_SECONDS)
        except AgentError:
            return False
        return True

    def time(self) -> float:
        """The guest's clock, seconds since the epoch."""
        return int(self._ask("guest-get-time")) / 1e9

    def run(self, line: str, limit: float, cancel: CancelToken, environment: Mapping[str, str] | None = None) -> Ran:
        """Run a line in the guest's shell and wait at most `limit` seconds for its end; it runs on after that.

        `environment` is all that it has; without one it has the agent's.
        """
        arguments: dict[str, Any] = {"path": "/bin/sh", "arg": ["-c", line], "capture-output": True}
        if environment is not None:
            arguments["env"] = [f"{name}={value}" for name, value in environment.items()]
        pid = self._ask("guest-exec", **arguments)["pid"]
        deadline = time.monotonic() + limit
        while True:
            state = self._ask("guest-exec-status", pid=pid)
            if state["exited"]:
                text = b"".join(base64.b64decode(state.get(name, "")) for name in ("out-data", "err-data"))
                return Ran(state.get("exitcode"), text.decode(errors="replace"))
            if time.monotonic() > deadline:
                return Ran(None, f"not ended after {limit:.0f} s")
            cancel.check()
            time.sleep(POLL_SECONDS)

    def sha256(self, path: str) -> str:
        """The SHA-256 in hex of a file in the guest, read through the agent: the guest needs no tool for it."""
        handle = self._ask("guest-file-open", path=path, mode="r")
        digest = hashlib.sha256()
        try:
            while True:
                piece = self._ask("guest-file-read", handle=handle, count=_PIECE)
                digest.update(base64.b64decode(piece["buf-b64"]))
                if piece["eof"]:
                    return digest.hexdigest()
        finally:
            self._ask("guest-file-close", handle=handle)

    def addresses(self) -> list[str]:
        """The guest's IP addresses, without loopback and link-local ones."""
        found = []
        for interface in self._ask("guest-network-get-interfaces"):
            for entry in interface.get("ip-addresses", []):
                address = entry["ip-address"]
                if not address.startswith(("127.", "::1", "fe80:", "169.254.")):
                    found.append(address)
        return found

    def _ask(self, command: str, seconds: int = ANSWER_SECONDS, **arguments: Any) -> Any:
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        try:
            answer = libvirt_qemu.qemuAgentCommand(self._domain, json.dumps(request), seconds, 0)
        except libvirt.libvirtError as error:
            raise AgentError(f"{self._domain.name()}: {command}: {error}") from error
        return json.loads(answer)["return"]
