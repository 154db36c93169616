"""A host of its own: `python -m tests.upkeep.writer FOLDER NAME SKEW COUNT [pause]` backs up COUNT times.

Its state directory, boot and clock (the one in FOLDER/clock, off by SKEW seconds) are its own. With `pause` it stops
itself (SIGSTOP) right before its commit. What it committed and must read as goes to FOLDER/NAME.pickle.
"""

from __future__ import annotations

import os
import pickle
import random
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.upkeep.world import World
from vmcellar.errors import VmcellarError
from vmcellar.repository import leases
from vmcellar.tiers.local import LocalTier


def pause() -> None:
    """Until somebody sends SIGCONT."""
    os.kill(os.getpid(), signal.SIGSTOP)


def main(folder: Path, name: str, skew: float, count: int, mode: str) -> int:
    """The exit code: 3 when the paused backup was refused."""
    boot = leases.boot()
    leases.boot = lambda: f"{name} {boot}"
    dice = random.Random(name)
    with ThreadPoolExecutor(2) as pool:
        world = World(folder, LocalTier(folder / "hot"), pool)
        host = world.host(name, clock=lambda: float((folder / "clock").read_text()) + skew)
        parent = None
        for number in range(count):
            world.now = host.clock() + number
            changes = {dice.randrange(6): dice.randrange(8) for _ in range(3)} | {0: 3}
            try:
                parent = world.back_up(host, changes, parent, vm=name, before_commit=pause if mode else _nothing)
            except VmcellarError as error:  # its parent was pruned, or what it relies on is about to go
                sys.stderr.write(f"{error}\n")
                if mode:
                    return 3
                parent = None
        host.close()
        (folder / f"{name}.pickle").write_bytes(pickle.dumps(world.model))
    return 0


def _nothing() -> None: ...


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), "".join(sys.argv[5:])))
