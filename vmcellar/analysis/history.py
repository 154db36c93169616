"""The history of backups as pandas frames, read-only; the one shape that every analysis works on.

`history` has one row per VM, disk and run, sorted by VM, disk and start. Sizes are bytes, times are seconds, instants
are UTC. Where a figure is not known (a run that failed, a point that was read back by `catalog rebuild`) floats are NaN
and byte counts are 0.

| column | what |
|---|---|
| `run_id` | the run; unique together with `disk` |
| `vm`, `disk` | the VM and the disk's target; `disk` is empty for a run that failed before its disks were known |
| `started` | the instant that the run holds, or when a run without one began |
| `kind` | `full` or `incremental` |
| `ok` | whether a verified point came of it |
| `bytes_size` | the disk's size |
| `bytes_read` | what the source gave |
| `bytes_changed` | what the point records as changed, with what became zero; for a full, all of its data |
| `bytes_zero` | of what was looked at, what is zero, with holes |
| `bytes_new` | what the repository did not have, before compression |
| `bytes_stored` | what that took in packs |
| `ratio` | `bytes_new / bytes_stored`; NaN when nothing was stored |
| `seconds` | from the instant to the commit, of the whole run; the same in each of its rows |
| `seconds_held`, `seconds_frozen` | how long the backup job existed and the guest was frozen; of the whole run |
| `entropy` | of what was new, in bits per byte, from samples of its chunks; NaN if nothing was new or it is not known |
| `dedup_hits` | chunks that were read and that the repository, or the same run, had |
| `tier` | where the packs were placed |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Mapping

HISTORY: Mapping[str, str] = {
    "run_id": "object",
    "vm": "category",
    "disk": "category",
    "started": "datetime64[ns, UTC]",
    "kind": "category",
    "ok": "bool",
    "bytes_size": "int64",
    "bytes_read": "int64",
    "bytes_changed": "int64",
    "bytes_zero": "int64",
    "bytes_new": "int64",
    "bytes_stored": "int64",
    "ratio": "float64",
    "seconds": "float64",
    "seconds_held": "float64",
    "seconds_frozen": "float64",
    "entropy": "float64",
    "dedup_hits": "int64",
    "tier": "category",
}
"""Column to dtype; the order is the frame's."""


def empty_history() -> pd.DataFrame:
    """A history without a run, with every column in its dtype."""
    return pd.DataFrame({name: pd.Series([], dtype=dtype) for name, dtype in HISTORY.items()})


def conform(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with exactly the columns of a history, in order and dtype, sorted by VM, disk and start.

    KeyError that names the columns which are missing; pandas' own errors for values that are not of the dtype.
    """
    missing = [name for name in HISTORY if name not in frame.columns]
    if missing:
        raise KeyError(f"not a history: it has no column {', '.join(missing)}")
    typed = frame[list(HISTORY)].astype(dict(HISTORY))
    return typed.sort_values(["vm", "disk", "started"], kind="stable", ignore_index=True)
