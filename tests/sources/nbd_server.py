"""A real qemu-nbd for tests: serves an image on a socket until the block ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.waiting import wait_for


@dataclass(frozen=True)
class NbdServer:
    """A running qemu-nbd."""

    uri: str
    process: subprocess.Popen[bytes]

    def send(self, number: signal.Signals) -> None:
        """Signal the server process."""
        self.process.send_signal(number)


@contextmanager
def serve(
    socket: Path, image: Mapping[str, object], bitmap: str = "", *, writable: bool = False
) -> Iterator[NbdServer]:
    """Serve an image, described as QEMU's blockdev options, on `socket`."""
    listens = socket.with_suffix(".pid")  # the socket itself is there before anybody listens
    arguments = ["qemu-nbd", "--persistent", "--shared=8", f"--socket={socket}", f"--pid-file={listens}"]
    arguments += [] if writable else ["--read-only"]
    arguments += [f"--bitmap={bitmap}"] if bitmap else []
    process = subprocess.Popen([*arguments, f"json:{json.dumps(image)}"], env=os.environ | {"LC_ALL": "C"})
    try:
        wait_for(lambda: listens.exists() or process.poll() is not None, f"qemu-nbd to listen at {socket}")
        yield NbdServer(f"nbd+unix:///?socket={socket}", process)
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def image(path: Path, form: str = "raw") -> dict[str, object]:
    """Blockdev options of an image file."""
    return {"driver": form, "file": {"driver": "file", "filename": str(path)}}
