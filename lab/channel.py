"""Commands inside the guest, over a virtio-serial channel of the laboratory's own.

The guest agent is what the product uses, and the tests stop it, hang it and freeze the guest through it; so commands
take another way. The protocol is in guest_init.sh: a line "number base64(script)", then the script's input; the answer
is a line "number code length", then that many bytes of output. One thread at a time per channel.
"""

from __future__ import annotations

import base64
import itertools
import os
import socket
import time
from pathlib import Path

from lab.shellcommand import LabError


class ShellChannel:
    """A connection to the guest's shell; the guest answers once it has booted, also when it is connected before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(path))
        self._buffer = bytearray()
        # Answers to a client that died must not be taken for answers to this one.
        self._numbers = itertools.count(int.from_bytes(os.urandom(4), "big") << 20)

    def run(self, script: str, *, data: bytes = b"", seconds: float = 60) -> tuple[int, str]:
        """Run a shell script with `data` as its input; (exit code, standard output and error together).

        The script must read all of `data`, or the rest is taken for commands. LabError after `seconds`.
        """
        deadline = time.monotonic() + seconds
        number = next(self._numbers)
        try:
            self._send(b"%d %s\n" % (number, base64.b64encode(script.encode())), deadline)
            self._send(data, deadline)
            code, length = self._answer(number, deadline)
            return code, self._take(length, deadline).decode(errors="replace")
        except TimeoutError as error:
            raise LabError(f"the guest did not answer within {seconds:.0f} s: {script}") from error

    def close(self) -> None:
        """Let the channel go, so that another process may use it."""
        self._socket.close()

    def _answer(self, number: int, deadline: float) -> tuple[int, int]:
        while True:
            words = self._line(deadline).split()
            if len(words) == 3 and words[0] == b"%d" % number:
                return int(words[1]), int(words[2])

    def _line(self, deadline: float) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            self._receive(deadline)
        return self._take(end + 1, deadline)

    def _take(self, length: int, deadline: float) -> bytes:
        while len(self._buffer) < length:
            self._receive(deadline)
        taken = bytes(self._buffer[:length])
        del self._buffer[:length]
        return taken

    def _receive(self, deadline: float) -> None:
        self._limit(deadline)
        try:
            data = self._socket.recv(1 << 20)
        except ConnectionError:  # QEMU died with our bytes unread: the same as an orderly end
            data = b""
        if not data:
            raise LabError(f"the guest ended while it was asked something ({self._path})")
        self._buffer += data

    def _send(self, data: bytes, deadline: float) -> None:
        self._limit(deadline)
        try:
            self._socket.sendall(data)
        except ConnectionError as error:
            raise LabError(f"the guest has ended ({self._path})") from error

    def _limit(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
