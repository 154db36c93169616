"""Where a disk changes: the differences of its maps from point to point, as a matrix of time by place.

Costs time in proportion to what differs between the points, as equal parts of two maps are never read. Maps that are
damaged are read as a whole, to know whose they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from vmcellar.errors import IntegrityError, PermanentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmcellar.repository.points import DiskRecord, RestorePoint
    from vmcellar.repository.repository import Repository

COLUMNS = 128
MOST_POINTS = 200
"""The newest points that are compared, unless more are asked for: each is a look at the repository."""


@dataclass(frozen=True, slots=True)
class HeatMap:
    """`changed[i, j]`: the share (0 to 1) of cell j of the disk that differs between the point before and `points[i]`,
    which is of `times[i]`. A cell is `cell` bytes (the last one may be smaller), `size` the disk's largest size.

    `damaged` tells what is wrong with each map that cannot be read, by its point; the rows that it takes part in are
    NaN.
    """

    vm: str
    disk: str
    size: int
    cell: int
    points: tuple[str, ...]
    times: tuple[datetime, ...]
    changed: NDArray[np.float64]
    damaged: dict[str, str] = field(default_factory=dict)

    @property
    def bytes_changed(self) -> NDArray[np.float64]:
        """Bytes that differ, by point."""
        return np.asarray((self.changed * self._cells()).sum(axis=1))

    def _cells(self) -> NDArray[np.float64]:
        return np.diff(_edges(self.size, self.cell)).astype(float)


def heat_map(
    repository: Repository,
    vm: str,
    disk: str,
    columns: int = COLUMNS,
    most_points: int = MOST_POINTS,
    until: float | None = None,
) -> HeatMap:
    """The heat map of one disk of one VM, over its newest points, or the newest ones `until` then (seconds since the
    epoch). Reads the maps alone, never the disk's bytes.

    PermanentError when fewer than two points have the disk. A damaged map ends nothing (`HeatMap.damaged`).
    """
    wanted = (point for point in repository.points_of(vm) if until is None or point.time <= until)
    found = [(point, record) for point in wanted if (record := _disk_of(point, disk))]
    chosen = found[-most_points:]
    if len(chosen) < 2:
        raise PermanentError(
            f"{vm}: {len(chosen)} of its points have disk {disk}: a heat map compares two",
            hint="type `vmcellar list` to see its points, or take one more backup",
        )
    size = max(record.size for _, record in chosen)
    cell = max(1, -(-size // columns))
    edges = _edges(size, cell)
    rows: list[NDArray[np.float64]] = []
    for (_, before), (_, after) in pairwise(chosen):
        try:
            differ = list(repository.map(before).differences(repository.map(after)))
            rows.append(_covered(differ, edges) / np.diff(edges))
        except IntegrityError:
            rows.append(np.full(len(edges) - 1, np.nan))
    torn = any(np.isnan(row).any() for row in rows)
    damaged = {point.id: told for point, record in chosen if (told := damage_of(repository, record))} if torn else {}
    later = [point for point, _ in chosen[1:]]
    ids, times = tuple(point.id for point in later), tuple(point.when for point in later)
    return HeatMap(vm, disk, size, cell, ids, times, np.array(rows), damaged)


def damage_of_newest(repository: Repository) -> dict[tuple[str, str, str], str]:
    """What is wrong with maps of the newest readable point of each VM, by VM, point and disk. Reads them whole."""
    newest = {point.vm: point for point in repository.readable_points()}.values()
    each = ((point, disk) for point in newest for disk in point.disks)
    return {(point.vm, point.id, disk.target): told for point, disk in each if (told := damage_of(repository, disk))}


def damage_of(repository: Repository, record: DiskRecord) -> str:
    """What is wrong with the map of a disk, "" if it is whole. Reads all of it."""
    try:
        for _ in repository.map(record).rows():
            pass
    except IntegrityError as error:
        return error.message
    return ""


def _disk_of(point: RestorePoint, target: str) -> DiskRecord | None:
    return next((record for record in point.disks if record.target == target), None)


def _edges(size: int, cell: int) -> NDArray[np.int64]:
    return np.append(np.arange(0, size, cell), size)


def _covered(ranges: list[tuple[int, int]], edges: NDArray[np.int64]) -> NDArray[np.float64]:
    """Bytes of the ranges, which are in order and do not overlap, within each pair of edges."""
    if not ranges:
        return np.zeros(len(edges) - 1)
    starts, lengths = np.array(ranges, np.int64).T
    before = np.concatenate(([0], np.cumsum(lengths)))
    last = np.searchsorted(starts, edges, "right")  # ranges that begin at or before the edge
    inside = np.where(last > 0, np.minimum(edges - starts[last - 1], lengths[last - 1]) - lengths[last - 1], 0)
    return np.diff(before[last] + inside).astype(float)
