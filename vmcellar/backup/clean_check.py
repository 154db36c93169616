"""Do not trust the change tracker blindly: re-read a sample of what it calls clean (pitfall 4).

A stuck bitmap or a swapped image would give a silently wrong backup. The sample is drawn from the parent's map:
rows that name a whole chunk are compared by digest, so nothing stored has to be decoded, and holes are compared
with zero.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vmcellar.repository.layout import CHUNK_MAX, GRID
from vmcellar.repository.points import RestorePoint
from vmcellar.sources.base import Capture, Extent, SourceDisk
from vmcellar.sources.nbd import ExportReader

if TYPE_CHECKING:
    from vmcellar.engine import Engine

LEAST_BLOCKS = 10
"""Blocks re-read however small the disk (benji's rule: 0.1 %, at least 10)."""

Sample = tuple[int, int, bytes | None]
"""(offset, length, chunk id), the id None where the parent says zero."""


def suspicion(engine: Engine, capture: Capture, disk: SourceDisk, parent: RestorePoint, dirty: Sequence[Extent]) -> str:
    """Empty when every sampled clean block still is what the parent recorded, else what is wrong.

    Blocks differ from run to run, so each run finds a wrong tracker with a fresh chance.
    """
    samples = _draw(engine, disk, parent, dirty, random.SystemRandom())
    if not samples:
        return ""
    wrong: list[int] = []
    expected = {offset: chunk for offset, _, chunk in samples}

    def compare(offset: int, data: memoryview) -> None:
        chunk = expected[offset] or engine.zero_id(len(data))
        if engine.repository.keyring.chunk_id(data) != chunk:
            wrong.append(offset)

    with ExportReader(capture.uri(disk.target), disk=f"{capture.result.vm}: {disk.target}") as reader:
        reader.read([(offset, length) for offset, length, _ in samples], engine.read_buffers, compare)
    if not wrong:
        return ""
    return f"the change tracker missed changes (first at byte {min(wrong)}, {len(wrong)} of {len(samples)} samples)"


def _draw(
    engine: Engine, disk: SourceDisk, parent: RestorePoint, dirty: Sequence[Extent], dice: random.Random
) -> list[Sample]:
    record = next(d for d in parent.disks if d.target == disk.target)
    size = min(disk.size, record.size)
    share = engine.config.limits.sample
    wanted = max(LEAST_BLOCKS, round(size / GRID * share)) if share else 0
    pool = [s for s in _comparable(engine, record, size) if not _touches(dirty, s[0], s[1])] if wanted else []
    chunks = max(1, wanted * GRID // CHUNK_MAX)
    count = min(len(pool), max(chunks, LEAST_BLOCKS))
    return sorted(dice.sample(pool, count), key=lambda sample: sample[0])


def _comparable(engine: Engine, record: object, size: int) -> Iterator[Sample]:
    position = 0
    for rows in engine.repository.map(record).rows():
        for row in rows:
            offset, length = int(row["offset"]), int(row["length"])
            yield from _holes(position, min(offset, size))
            position = offset + length
            if position <= size and row["chunk_offset"] == 0:
                yield offset, length, bytes(row["chunk"])
    yield from _holes(position, size)


def _holes(start: int, end: int) -> Iterator[Sample]:
    """One block out of every hole: enough to notice data where a hole was."""
    length = min(GRID, end - start)
    if length > 0:
        yield start, length, None


def _touches(dirty: Sequence[Extent], offset: int, length: int) -> bool:
    starts = [extent.offset for extent in dirty]
    index = int(np.searchsorted(starts, offset + length)) - 1
    return index >= 0 and dirty[index].offset + dirty[index].length > offset
