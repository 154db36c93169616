"""What a point leaves out: files of the guest whose bytes it holds as zero (docs/repository-format.md, section 9).

A file that is renamed out of a folder changes no block of its data, so no change tracker names it: only this record
tells the next backup what it must read, whatever the bitmap says. So a disk with something left out has a mark in its
`identity`: a writer that does not know the mark takes the disk for another one, and reads all of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from vmcellar.errors import IntegrityError, PermanentError
from vmcellar.repository.layout import GRID

if TYPE_CHECKING:
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository

ARTIFACT = "left-out.json"
MARK = ";left-out=1"
MOST_RANGES = 3000
MOST_BYTES = 60 << 10
"""Artifacts from 64 KiB up lie in data packs, which a host in recipient mode cannot read."""
MEANING = (
    "files there come back with their names and sizes, and with zeroes for content: a database or a log there is gone, "
    "a swap file must be made anew (mkswap)"
)
"""What leaving out means, for people."""

Cluster = Annotated[int, Field(ge=0, lt=1 << 44)]


@checked(frozen=True, slots=True, config=ConfigDict(extra="forbid", strict=True))
class LeftOut:
    """`paths` as the job names them; `disks` are (first cluster, clusters) of GRID bytes by target, sorted, apart."""

    paths: tuple[str, ...]
    disks: dict[str, tuple[tuple[Cluster, Cluster], ...]] = Field(default_factory=dict)
    format: Literal[1] = 1

    def ranges(self, target: str) -> list[tuple[int, int]]:
        """(offset, length) in bytes of what a disk's map holds as zero though the guest had something there."""
        return [(first * GRID, count * GRID) for first, count in self.disks.get(target, ())]

    @property
    def bytes(self) -> int:
        """All that is left out."""
        return sum(count * GRID for each in self.disks.values() for _, count in each)


def of_ranges(paths: Iterable[str], ranges: dict[str, list[tuple[int, int]]]) -> LeftOut:
    """The record of these ranges of whole clusters, or of the largest of them, that fit: the rest is not left out."""
    names = tuple(paths)
    every = [(target, offset // GRID, length // GRID) for target, each in ranges.items() for offset, length in each]
    every.sort(key=lambda one: one[2], reverse=True)
    most = MOST_RANGES
    left = _record(names, every[:most])
    while most and len(encode(left)) > MOST_BYTES:
        most = most * 3 // 4
        left = _record(names, every[:most])
    return left


def _record(paths: tuple[str, ...], every: Iterable[tuple[str, int, int]]) -> LeftOut:
    disks: dict[str, list[tuple[int, int]]] = {}
    for target, first, count in sorted(every):
        disks.setdefault(target, []).append((first, count))
    return LeftOut(paths, {target: tuple(each) for target, each in disks.items()})


def encode(left: LeftOut) -> bytes:
    """The artifact's bytes."""
    return _ADAPTER.dump_json(left)


def decode(data: bytes) -> LeftOut:
    """IntegrityError when it is not such a record, or its ranges are not in order."""
    try:
        left = _ADAPTER.validate_json(data)
    except ValidationError as error:
        raise IntegrityError(f"{ARTIFACT} is not of this format: {error.errors()[0]['msg']}") from error
    for target, each in left.disks.items():
        reached = 0
        for first, count in each:
            if first < reached or not count:
                raise IntegrityError(f"{ARTIFACT}: the ranges of {target} are not in order")
            reached = first + count
    return left


def marked(identity: str) -> str:
    """The identity of a disk of which something is left out."""
    return identity if identity.endswith(MARK) else identity + MARK


def unmarked(identity: str) -> str:
    """The identity without the mark."""
    return identity.removesuffix(MARK)


def of_point(repository: Repository, point: RestorePoint) -> LeftOut | None:
    """What `point` leaves out; nothing of a point of before this; None when it is not certain.

    Its disks' marks must say the same as its record. Raises TransientError while the storage does not answer.
    """
    marks = {disk.target for disk in point.disks if disk.identity.endswith(MARK)}
    artifact = point.artifact(ARTIFACT)
    if artifact is None:
        return None if marks else LeftOut(())
    try:
        left = decode(repository.artifact(artifact))
    except (IntegrityError, PermanentError):
        return None
    return left if marks == {target for target, each in left.disks.items() if each} else None


def warning(point: RestorePoint) -> str:
    """What whoever restores the point must know, by its disks' marks alone; empty when nothing is left out."""
    targets = [disk.target for disk in point.disks if disk.identity.endswith(MARK)]
    if not targets:
        return ""
    return f"{', '.join(targets)}: content of some paths was left out by the job's `exclude: path:`: {MEANING}"


_ADAPTER = TypeAdapter(LeftOut)
