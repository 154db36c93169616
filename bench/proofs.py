"""False alarms: points of a guest that keeps changing, each proven; none may be found bad.

    ./run bench proofs [--points 50]

A lab guest writes, deletes and trims files in an ext4, and writes and discards all over raw disks, without a pause.
Every point is crash-consistent or frozen by turns, proven in full, and judged by the suites; every tenth is drilled.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from dataclasses import dataclass, field

from lab import daemons
from lab.guest import LabGuest
from lab.paths import vm_folder
from tests.proof.cellar import MIB, Cellar
from vmcellar.progress import CancelToken, no_progress
from vmcellar.quality import proving

EVERY = 10


@dataclass
class Figures:
    """Seconds, and what was found bad."""

    proofs: list[float] = field(default_factory=list)
    drills: list[float] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)


def main() -> int:
    """Run it; 1 when there was an alarm."""
    parser = argparse.ArgumentParser(prog="bench proofs", description=__doc__)
    parser.add_argument("--points", type=int, default=50)
    wanted = parser.parse_args().points
    figures = Figures()
    daemons.ensure()
    with vm_folder("proofs") as folder, LabGuest(folder) as guest:
        guest.start()
        cellar = Cellar(folder / "cellar")
        guest.start_writer("vdb")
        for number in range(wanted):
            one_point(cellar, guest, number, figures)
    print("\n".join(figures.alarms))
    print(f"{wanted} points of a changing guest: {len(figures.alarms)} alarms")
    proof, rto = statistics.median(figures.proofs), statistics.median(figures.drills)
    print(f"median of a proof {proof:.2f} s, RTO of a drill {rto:.2f} s")
    return 1 if figures.alarms else 0


def one_point(cellar: Cellar, guest: LabGuest, number: int, figures: Figures) -> None:
    """Change the guest, back it up, prove the point."""
    change(guest, random.Random(number))
    if number % 2:
        guest.agent_stop()
    summary = cellar.backup(guest)
    if number % 2:
        guest.agent_start()
    repository = cellar.engine.repository
    point = repository.point(summary.id)
    started = time.monotonic()
    records = [proving.prove(repository, cellar.config, point, None, no_progress, CancelToken())[0]]
    figures.proofs.append(time.monotonic() - started)
    if number % EVERY == 0:
        wishes = proving.DrillWishes()
        records.append(proving.drill(repository, cellar.config, point, no_progress, CancelToken(), wishes)[0])
        figures.drills.append(records[-1].rto or 0.0)
    figures.alarms += [
        f"ALARM at point {number}, {point.consistency}: {each.kind}: {each.failed or each.expectations}"
        for each in records
        if each.verdict == "failed"
    ]


def change(guest: LabGuest, dice: random.Random) -> None:
    """Some files more, some less, some holes."""
    guest.fill(f"file{dice.randrange(12)}", dice.randrange(1, 64) << 16, seed=dice.randrange(1 << 30))
    if dice.random() < 0.5:
        guest.run(f"rm -f /data/file{dice.randrange(12)}")
    if dice.random() < 0.3:
        guest.fstrim()
    guest.discard("sda", dice.randrange(64) * MIB, MIB)
    guest.write("sda", dice.randrange(64) * MIB, MIB // 2, seed=dice.randrange(1 << 30))
