"""A host of its own: `python -m tests.upkeep.one_host FOLDER NAME SKEW` does what is asked on standard input.

Its state directory, scratch, landing zone, VM, boot and clock (off by SKEW seconds) are its own; the repository is
FOLDER/hot, that of all hosts. Asked `back-up SEED...` it backs up its VM once for each content; asked `collect TIMES`
it prunes and runs gc, so many times, without a grace time. The answer is one line of JSON. Whatever is neither done nor
refused in words ends it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.faults.cellar import Cellar, prepare_process
from vmcellar.backup import pipeline
from vmcellar.backup.model import BackupRequest, PointSummary
from vmcellar.config.jobs import KeepByAge
from vmcellar.errors import PermanentError, TransientError
from vmcellar.repository import leases
from vmcellar.repository.repository import Repository
from vmcellar.upkeep import gc, pins, prune

TRIES = 4
"""A backup is refused once for each gc that marked what it relies on, and there are two of these at a time."""


@dataclass
class Answer:
    """Ids of points that were made and dropped, keys of packs that went, and what was refused."""

    made: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


class Host:
    """Does what is asked; one thread, beside the engine's own."""

    def __init__(self, cellar: Cellar, name: str, skew: float) -> None:
        self._cellar = cellar
        self._name = name
        self._skew = skew

    def back_up(self, seeds: Sequence[str]) -> Answer:
        """A backup for each content; one that is refused is tried again, as a user would."""
        done = Answer()
        for seed in map(int, seeds):
            for _ in range(TRIES):
                try:
                    done.made.append(self._cellar.noting(self._name, seed, self._back_up).id)
                    break
                except (PermanentError, TransientError) as error:
                    done.refused.append(str(error))
            else:
                raise AssertionError(f"{self._name} could not be backed up: {done.refused}")
        return done

    def _back_up(self) -> PointSummary:
        engine = self._cellar.engine()
        self._set_clock(engine.repository)
        try:
            return pipeline.run(engine, BackupRequest(self._name, "auto"))
        finally:
            engine.cpu.shutdown()
            engine.repository.close()

    def collect(self, times: int) -> Answer:
        """prune and gc: each gc deletes what the one before has marked, if no backup stands before it."""
        done = Answer()
        for _ in range(times):
            repository = self._cellar.open()
            self._set_clock(repository)
            rules = prune.rules_for_all(KeepByAge(last=2))
            plan = prune.plan(repository.points(), rules, pins=pins.pinned(repository), now=repository.clock())
            done.dropped += [point.id for point in prune.drop(repository, plan)]
            done.deleted += gc.collect(repository, grace=0.0).deleted
            repository.close()
        return done

    def _set_clock(self, repository: Repository) -> None:
        repository.clock = lambda: time.time() + self._skew


def main(folder: Path, name: str, skew: float) -> int:
    """Until standard input ends."""
    prepare_process()
    boot = leases.boot()
    leases.boot = lambda: f"{name} {boot}"  # no host can look at another's processes
    host = Host(Cellar(folder / name), name, skew)
    for line in sys.stdin:
        what, *more = line.split()
        answer = host.collect(int(more[0])) if what == "collect" else host.back_up(more)
        print(json.dumps(asdict(answer)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
