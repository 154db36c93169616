"""Hold a restored raw image against the point's map, block by block, and make the disk's root anew from the image.

Independent of how the image was written: every extent of the map is read back from the image, its chunk id is worked
out from those bytes, and everything between extents must read as zero.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vmcellar.progress import CancelToken, ProgressSink
from vmcellar.repository import nodes
from vmcellar.repository.layout import LEAF_BYTES
from vmcellar.repository.nodes import Rows
from vmcellar.restore.plan import chunk_ids

if TYPE_CHECKING:
    from vmcellar.repository.points import DiskRecord
    from vmcellar.repository.repository import Repository

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Compared:
    """What a comparison came to, in bytes; `root` is that of the map made anew, in hex."""

    size: int
    compared: int
    differing: int
    root: str


def compare_image(
    repository: Repository, disk: DiskRecord, image: Path, progress: ProgressSink, cancel: CancelToken
) -> Compared:
    """Compare the whole image; bytes are reported as stage "compare". IntegrityError when the map cannot be read."""
    compared = differing = 0
    found: list[Rows] = []
    with image.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        for start in range(0, disk.size, LEAF_BYTES):
            cancel.check()
            end = min(start + LEAF_BYTES, disk.size)
            rows = _joined(repository, disk, start, end)
            wrong = _Extents(repository, file.fileno(), rows).wrong()
            differing += sum(int(rows["length"][i]) for i in wrong) + _not_zero(file.fileno(), rows, start, end, size)
            for i, chunk in wrong.items():
                rows["chunk"][i], rows["chunk_offset"][i] = np.frombuffer(chunk, np.uint8), 0
            found.append(rows)
            compared += end - start
            progress("compare", end - start)
    changes = np.concatenate(found) if found else nodes.no_rows()
    root, _ = repository.empty_map(disk.size).replace(changes, disk.size)
    return Compared(size, compared, differing, root.hex())


def _joined(repository: Repository, disk: DiskRecord, start: int, end: int) -> Rows:
    parts = list(repository.map(disk).rows(start, end))
    return np.concatenate(parts) if parts else nodes.no_rows()


class _Extents:
    """The extents of one leaf against the image."""

    def __init__(self, repository: Repository, image: int, rows: Rows) -> None:
        self._repository = repository
        self._image = image
        self._rows = rows
        self._ids = chunk_ids(rows)

    def wrong(self) -> dict[int, bytes]:
        """The rows whose bytes in the image are not those of their chunk, with the chunk id of what is there."""
        lengths = {
            found.chunk: found.length for found in self._repository.locate(list(dict.fromkeys(self._ids))).values()
        }
        wrong = {}
        for i, chunk in enumerate(self._ids):
            row = self._rows[i]
            data = os.pread(self._image, int(row["length"]), int(row["offset"]))
            whole = int(row["chunk_offset"]) == 0 and int(row["length"]) == lengths[chunk]
            own = self._repository.keyring.chunk_id(data)
            if own != chunk if whole else data != self._part(chunk, row):
                wrong[i] = own
        return wrong

    def _part(self, chunk: bytes, row: np.void) -> bytes:
        """The bytes that a row takes out of a chunk, from the repository: a part has no digest of its own."""
        start = int(row["chunk_offset"])
        return self._repository.read_objects([chunk])[chunk][start : start + int(row["length"])]


def _not_zero(image: int, rows: Rows, start: int, end: int, size: int) -> int:
    """Bytes between extents that are not zero, or not there."""
    wrong = max(0, end - max(start, size))
    place = start
    for offset, length in [*zip(rows["offset"].tolist(), rows["length"].tolist(), strict=True), (end, 0)]:
        wrong += sum(_nonzero(piece) for piece in _data(image, place, offset))
        place = offset + length
    return wrong


def _data(image: int, start: int, end: int) -> Iterator[bytes]:
    """What the file holds between start and end, holes left out."""
    while start < end:
        try:
            start = os.lseek(image, start, os.SEEK_DATA)
        except OSError:  # no data up to the end of the file
            return
        stop = min(end, start + _PIECE)
        if start >= end:
            return
        data = os.pread(image, stop - start, start)
        if not data:
            return
        yield data
        start += len(data)


def _nonzero(data: bytes) -> int:
    return int(np.count_nonzero(np.frombuffer(data, np.uint8))) if data.strip(b"\0") else 0
