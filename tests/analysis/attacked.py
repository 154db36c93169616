"""An engine whose catalog holds the history of one VM that was encrypted, and points from before and after."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache

import pandas as pd

from tests.repository.writing import back_up
from vmcellar.analysis.anomalies import Anomaly, find
from vmcellar.analysis.grid import seconds_of
from vmcellar.analysis.sample import TUNING, generate
from vmcellar.engine import Engine
from vmcellar.repository.points import RestorePoint

DAY = 86400.0


@dataclass
class Attacked:
    """`at` is when the attack began and `now` two days later (seconds since the epoch); `points` are those of `vm`."""

    engine: Engine
    vm: str
    at: float
    now: float
    points: list[RestorePoint]

    def before(self, days: float) -> str:
        """The point that was taken so many days before the attack."""
        return next(point.id for point in self.points if abs(point.time - (self.at - days * DAY)) < 1800)


@cache
def attacked_history() -> tuple[str, float, pd.DataFrame]:
    """A VM, when its encryption begins, and its hourly runs of about 60 days up to two days later."""
    settings = replace(TUNING, seed=5, vms=1, days=60, classes=("office",), every_hours=(1,), trouble_share=1.0)
    sample = generate(settings)
    (truth,) = sample.truth.to_dict("records")
    assert truth["trouble"] == "ransomware"
    at = sample.start.timestamp() + truth["trouble_hour"] * 3600.0
    return str(truth["vm"]), at, sample.frame[seconds_of(sample.frame["started"]) <= at + 2 * DAY]


@cache
def found_at(moment: float) -> list[Anomaly]:
    """The anomalies that are seen at a moment."""
    return find(attacked_history()[2], moment)


def attack(engine: Engine) -> Attacked:
    """Points from 9, 8, 2, 1 and a fifth of a day before, and one from after it."""
    vm, at, _ = attacked_history()
    points = []
    with ThreadPoolExecutor(2) as pool:
        for days in (9, 8, 2, 1, 0.2, -0.2):
            data = b"%f" % days * (1 << 12)
            points.append(back_up(engine.repository, pool, [(0, data)], 1 << 20, vm=vm, time=at - days * DAY))
    engine.repository.clock = lambda: at + 2 * DAY
    return Attacked(engine, vm, at, at + 2 * DAY, points)
