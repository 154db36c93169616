"""A host of its own: `python -m tests.upkeep.collector FOLDER STEP` runs gc, and stops itself (SIGSTOP) at a step.

That is before the STEP-th call that changes the repository; the clock is the one in FOLDER/clock. Exit code 0: gc
ended, 3: it was refused in words, 4: it has fewer steps.
"""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.tiers.faulty import FaultyTier
from tests.upkeep.world import World
from vmcellar.errors import VmcellarError
from vmcellar.repository import leases
from vmcellar.tiers.local import LocalTier
from vmcellar.upkeep import gc


@dataclass
class PausingTier(FaultyTier):
    """Stops its process before an operation that changes something."""

    pause_at: int = 0
    paused: bool = False

    def _before(self, operation: str) -> None:
        super()._before(operation)
        if operation in self.operations and self.count == self.pause_at and not self.paused:
            self.paused = True
            os.kill(os.getpid(), signal.SIGSTOP)


def main(folder: Path, step: int) -> int:
    """See above."""
    boot = leases.boot()
    leases.boot = lambda: f"collector {boot}"
    with ThreadPoolExecutor(1) as pool:
        world = World(folder, LocalTier(folder / "hot"), pool)
        tier = PausingTier(world.tier, pause_at=step)
        host = world.host("collector", tier, clock=lambda: float((folder / "clock").read_text()))
        try:
            gc.collect(host)
        except VmcellarError as error:
            sys.stderr.write(f"{error}\n")
            return 3
        finally:
            host.close()
    return 0 if tier.paused else 4


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
