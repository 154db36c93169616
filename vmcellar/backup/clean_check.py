"""Do not trust the change tracker blindly: re-read a sample of what it calls clean (pitfall 4).

A stuck bitmap or a swapped image would give a silently wrong backup. The sample is drawn from the parent's map:
rows that name a whole chunk are compared by digest, so nothing stored has to be decoded, and holes are compared
with zero.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vmcellar.progress import CancelToken
from vmcellar.repository.layout import CHUNK_MAX, GRID
from vmcellar.repository.points import DiskRecord, RestorePoint
from vmcellar.repository.repository import Repository
from vmcellar.sources.base import Capture, Extent, SourceDisk
from vmcellar.sources.nbd import ExportReader

if TYPE_CHECKING:
    from vmcellar.engine import Engine

LEAST_BLOCKS = 10
"""Places re-read however small the disk (benji's rule: 0.1 %, at least 10)."""
MOST_BYTES = 512 << 20
"""The most that is re-read of a disk: the VM is held meanwhile, and some hundred places tell as much as thousands."""

Sample = tuple[int, int, bytes | None]
"""(offset, length, chunk id), the id None where the parent says zero."""


def suspicion(
    engine: Engine,
    capture: Capture,
    disk: SourceDisk,
    parent: RestorePoint,
    dirty: Sequence[Extent],
    cancel: CancelToken,
    *,
    share: float | None = None,
) -> str:
    """Empty when every sampled clean block still is what the parent recorded, else what is wrong.

    Blocks differ from run to run, so each run finds a wrong tracker with a fresh chance. `share` of them, else that of
    the configuration, is re-read, up to MOST_BYTES.
    """
    wanted = engine.config.limits.sample if share is None else share
    samples = _draw(engine, disk, parent, dirty, random.SystemRandom(), wanted)
    if not samples:
        return ""
    with reader_of(capture, disk) as reader:
        wrong = differing(engine, reader, samples, cancel)
    if not wrong:
        return ""
    return f"the change tracker missed changes (first at byte {min(wrong)}, {len(wrong)} of {len(samples)} samples)"


def reader_of(capture: Capture, disk: SourceDisk) -> ExportReader:
    """A connection to the held disk for `differing`; the caller closes it."""
    return ExportReader(capture.uri(disk.target), disk=f"{capture.result.vm}: {disk.target}")


def differing(engine: Engine, reader: ExportReader, samples: Sequence[Sample], cancel: CancelToken) -> set[int]:
    """The offsets of those samples, each at most CHUNK_MAX long, that the disk does not have as the parent says."""
    wrong: set[int] = set()
    expected = {offset: chunk for offset, _, chunk in samples}

    def compare(offset: int, data: memoryview) -> None:
        chunk = expected[offset] or engine.zero_id(len(data))
        if engine.repository.keyring.chunk_id(data) != chunk:
            wrong.add(offset)

    reader.read([(offset, length) for offset, length, _ in samples], engine.read_buffers, compare, cancel)
    return wrong


def _draw(
    engine: Engine,
    disk: SourceDisk,
    parent: RestorePoint,
    dirty: Sequence[Extent],
    dice: random.Random,
    share: float,
) -> list[Sample]:
    """Clean ranges to compare, at random places of the disk, each at most one chunk."""
    record = next(d for d in parent.disks if d.target == disk.target)
    blocks = min(disk.size, record.size) // GRID
    wanted = min(blocks, max(LEAST_BLOCKS, round(blocks * share))) if share else 0
    places = (GRID * block for block in dice.sample(range(blocks), wanted))
    starts = [extent.offset for extent in dirty]
    most = min(MOST_BYTES, int(disk.size * share))
    samples: dict[Sample, None] = {}
    total = 0
    for sample in _comparable(engine.repository, record, places):
        if total >= most and len(samples) >= LEAST_BLOCKS:
            break
        if sample not in samples and not _touches(dirty, starts, sample[0], sample[1]):
            samples[sample] = None
            total += sample[1]
    return sorted(samples, key=lambda sample: sample[0])


def _comparable(repository: Repository, record: DiskRecord, places: Iterable[int]) -> Iterator[Sample]:
    """What the parent's map says at each place: a whole chunk, or a hole. A part of a chunk has no digest of its
    own.
    """
    disk_map = repository.map(record)
    for place in places:
        window = place // CHUNK_MAX * CHUNK_MAX  # no row crosses it, so rows come whole
        rows = [row for part in disk_map.rows(window, window + CHUNK_MAX) for row in part]
        near = [row for row in rows if row["offset"] < place + GRID and row["offset"] + row["length"] > place]
        if not near:
            yield place, GRID, None
        elif is_whole(repository, near[0]):
            yield int(near[0]["offset"]), int(near[0]["length"]), near[0]["chunk"].tobytes()


def is_whole(repository: Repository, row: np.void) -> bool:
    """Whether a row of a map names a whole chunk, which the repository still has."""
    if row["chunk_offset"]:
        return False
    chunk = row["chunk"].tobytes()
    location = repository.index.locate([chunk]).get(chunk)
    return location is not None and location.length == int(row["length"])


def _touches(dirty: Sequence[Extent], starts: Sequence[int], offset: int, length: int) -> bool:
    index = bisect_left(starts, offset + length) - 1
    return index >= 0 and dirty[index].offset + dirty[index].length > offset
