"""A heat map as a table, as JSON, and as a file."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from vmcellar.backup.report import size_text
from vmcellar.errors import PermanentError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from vmcellar.analysis.heat import HeatMap

ACROSS = 64
SHADES = " ·░▒▓█"
"""Nothing changed; less than 0.1 %, 1 %, 10 %, half, and more of a part."""
LIMITS = (0.0, 0.001, 0.01, 0.1, 0.5)
TORN = "?"


def heat_table(found: HeatMap) -> Table:
    """A row per point, newest last; the strip is the disk from its begin to its end."""
    table = Table(
        title=f"{found.vm} {found.disk}, {size_text(found.size)}", box=None, pad_edge=False, title_justify="left"
    )
    table.add_column("point")
    table.add_column("when")
    table.add_column("changed", justify="right")
    table.add_column("where", no_wrap=True)
    for point, when, share, size in zip(found.points, found.times, found.changed, found.bytes_changed, strict=True):
        torn = bool(np.isnan(size))
        changed = "unknown" if torn else size_text(round(float(size)))
        table.add_row(point, f"{when:%Y-%m-%d %H:%M}", changed, f"|{strip(share)}|")
    return table


def strip(share: NDArray[np.float64]) -> str:
    """The most that any part of each stretch of the disk changed, as one character."""
    stretches = np.array_split(share, min(ACROSS, len(share)))
    most = [float(np.max(stretch)) for stretch in stretches]
    return "".join(TORN if np.isnan(one) else SHADES[int(np.searchsorted(LIMITS, one, "left"))] for one in most)


def heat_json(found: HeatMap) -> dict[str, Any]:
    """The fields of `heat --json`: bytes, and per point the share of each cell that changed (null: a damaged map)."""
    rows = [[None if np.isnan(share) else round(float(share), 6) for share in row] for row in found.changed]
    return {
        "vm": found.vm,
        "disk": found.disk,
        "size": found.size,
        "cell": found.cell,
        "points": [
            {"point": point, "time": when.isoformat(), "changed": row}
            for point, when, row in zip(found.points, found.times, rows, strict=True)
        ],
        "damaged": found.damaged,
    }


def draw(found: HeatMap, folder: Path) -> Path:
    """Write it as `folder/VM-DISK.png`, in place of what is there. PermanentError when the folder takes no file."""
    from vmcellar.analysis import plots
    from vmcellar.analysis.figures import png

    target = folder / f"{found.vm}-{found.disk}.png"
    new = target.with_name(f"{target.name}.new")
    try:
        new.write_bytes(png(plots.heat(found)))
        new.replace(target)
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        hint = "make room there, or name another folder" if folder.is_dir() else "name a folder that exists"
        raise PermanentError(f"{target}: {error.strerror}", hint=hint) from error
    return target
