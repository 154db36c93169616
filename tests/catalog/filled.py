"""A catalog with some rows of every table, and whether two catalogs tell the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from tests.catalog.rows import START, point, run, segment
from vmcellar.analysis import history
from vmcellar.catalog.catalog import Catalog
from vmcellar.catalog.metrics import standing
from vmcellar.catalog.models import Anomaly, Evidence, ScheduleChange, Stage, StorageAdvice, TierUse
from vmcellar.catalog.rebuild import rebuild

REPOSITORY = "ab" * 16


def fill(catalog: Catalog) -> None:
    """Some rows of every table."""
    points = [point(vm, hour) for vm in ("web", "db") for hour in range(3)]
    rebuild(catalog, points, START)
    rebuild(catalog, points[1:], START + 1)
    own: dict[str, Any] = {"repository": REPOSITORY, "vm": "web"}
    anomaly: dict[str, Any] = {"disks": "vda", "score": 9.5, "text": "x"}
    anomaly |= dict.fromkeys(("began", "at", "last", "noted"), START)
    catalog.add(
        [
            run("r1", repository=REPOSITORY, outcome="failed", error="no\nway: 😬", warnings=["a", "b"]),
            segment("run-web-1", retries=2),
            Stage(run_id="run-web-1", target="vda", stage="export", seconds=1.5, bytes=1 << 40, retries=2),
            Evidence(id="e1", point_id=points[1].id, time=START, kind="drill", ok=True, rto_seconds=30.5, **own),
            ScheduleChange(
                id="s1", time=START, before="a", after="b", reason="c", applied=True, predicted={"rpo": 4.5}, **own
            ),
            Anomaly(id="a1", kind="stuck", full=True, pins=["p"], **anomaly, **own),
            StorageAdvice(
                id="v1",
                repository=REPOSITORY,
                about="compression",
                vm="web",
                time=START,
                today="zstd:1",
                advised="zstd:3",
                figure=0.5,
                predicted=0.4,
            ),
            TierUse(repository=REPOSITORY, tier="hot", time=START, used=1 << 50, free=None),
        ]
    )


READ: dict[str, Callable[[Catalog], Any]] = {
    **{name: getattr(history, name) for name in ("history", "runs", "stages", "segments", "points", "evidence")},
    **{name: getattr(history, name) for name in ("schedule_changes", "storage_advice", "tier_use")},
    "strange": history.anomalies,
    "proved": history.proved,
    "there": history.there,
    "held": lambda catalog: history.held_before(catalog, START + 1e9).sort_values(["vm", "goes"], ignore_index=True),
    "counts": Catalog.counts,
    "standing": lambda catalog: {name: sorted(map(repr, rows)) for name, rows in _plain(standing(catalog)).items()},
    "anomalies": lambda catalog: [repr(row) for row in catalog.anomalies("web")],
    "advice": lambda catalog: [repr(row) for row in catalog.storage_advice()],
    "changes": lambda catalog: [repr(row) for row in catalog.schedule_changes()],
}


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    """SQLite has no booleans."""
    as_int = {True: 1, False: 0}
    return {
        table: [
            {name: as_int[value] if isinstance(value, bool) else value for name, value in row.items()} for row in rows
        ]
        for table, rows in found.items()
    }


def same_rows(first: Catalog, second: Catalog) -> None:
    """Fails where they tell otherwise, or nothing."""
    for name, read in READ.items():
        one, other = read(first), read(second)
        if isinstance(one, pd.DataFrame):
            assert len(one), name
            pd.testing.assert_frame_equal(one, other, obj=name)
        else:
            assert one == other, name
