"""A made-up history in a catalog, as if its runs had been noted one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from vmcellar.catalog.models import Run, RunDisk

if TYPE_CHECKING:
    from vmcellar.catalog.catalog import Catalog


def note_runs(catalog: Catalog, frame: pd.DataFrame) -> None:
    """The runs of a history with one disk per run, as rows of the catalog."""
    rows: list[Any] = []
    for one in frame.to_dict("records"):
        run, started = f"run-{one['run_id']}", one["started"].timestamp()
        rows.append(
            Run(
                id=run, repository=catalog.repository, vm=str(one["vm"]), started=started, kind=str(one["kind"]),
                outcome="done" if one["ok"] else "failed", finished=started + one["seconds"],
                held_seconds=one["seconds_held"], freeze_seconds=one["seconds_frozen"],
            )
        )  # fmt: skip
        names = ("bytes_read", "bytes_changed", "bytes_zero", "bytes_new", "bytes_stored")
        sizes: dict[str, Any] = {name: int(one[name]) for name in names}
        entropy = None if pd.isna(one["entropy"]) else float(one["entropy"])
        rows.append(
            RunDisk(
                run_id=run, target=str(one["disk"]), size=int(one["bytes_size"]), entropy=entropy, tier="hot",
                chunks_known=int(one["dedup_hits"]), **sizes,
            )
        )  # fmt: skip
    catalog.add_new(rows)
