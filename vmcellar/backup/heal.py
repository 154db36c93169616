"""heal: what an incremental reads beside the changes, since the repository lost it (pitfall 21).

A scrub notes chunks and map nodes that failed a check or whose pack is gone. Where the parent's map still refers to
such a chunk and there is no better copy, the disk is read again in that place: what it holds there is what was lost.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from vmcellar.errors import IntegrityError
from vmcellar.repository.layout import ID_BYTES
from vmcellar.sources.base import Extent
from vmcellar.tiers.base import NotFoundError

if TYPE_CHECKING:
    from vmcellar.repository.points import DiskRecord
    from vmcellar.repository.repository import Repository

_log = logging.getLogger(__name__)


def lost_extents(repository: Repository, disk: DiskRecord) -> list[Extent] | None:
    """The ranges of a parent's disk whose content is lost, in order; None when its map cannot be read: read all.

    Costs a look at the index while nothing is noted, else a walk over the disk's whole map.
    """
    lost = repository.index.lost()
    if not lost:
        return []
    found = []
    try:
        for rows in repository.map(disk).rows():
            data = rows["chunk"].tobytes()
            for number, row in enumerate(rows):
                if data[number * ID_BYTES : (number + 1) * ID_BYTES] in lost:
                    found.append(Extent(int(row["offset"]), int(row["length"]), zero=False))
    except (IntegrityError, NotFoundError) as error:
        _log.warning("%s: its map is damaged and the disk is read in full: %s", disk.target, error.message)
        return None
    return found


def beside(dirty: Iterable[Extent], lost: Iterable[Extent], size: int) -> list[Extent]:
    """What changed, and of what was lost the rest, in order, none twice, none beyond `size`.

    Lost extents are not joined: read in the pieces in which they were stored, they are the same chunks again, so that
    older points are healed, too.
    """
    changed = sorted(dirty, key=lambda extent: extent.offset)
    return sorted([*changed, *_outside(changed, lost, size)], key=lambda extent: extent.offset)


def _outside(changed: Sequence[Extent], lost: Iterable[Extent], size: int) -> Iterator[Extent]:
    ends = [extent.offset + extent.length for extent in changed]
    for extent in lost:
        start, end = extent.offset, min(extent.offset + extent.length, size)
        for known in changed[bisect_right(ends, start) :]:
            if known.offset >= end:
                break
            if known.offset > start:
                yield Extent(start, known.offset - start, zero=False)
            start = known.offset + known.length
        if start < end:
            yield Extent(start, end - start, zero=False)
