"""The walk of a scrub: down all disk maps, every distinct node once, to the packs that hold the chunks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmcellar.errors import CancelledError, IntegrityError, VmcellarError
from vmcellar.progress import CancelToken
from vmcellar.repository import nodes
from vmcellar.repository.layout import ABSENT, ID_BYTES, WHAT_NODE, span_of
from vmcellar.repository.nodes import Rows
from vmcellar.repository.packs import Location, PackRef
from vmcellar.repository.scrub_copies import is_away
from vmcellar.tiers.base import Copies, NotFoundError, Tier

if TYPE_CHECKING:
    from vmcellar.repository.points import Artifact, RestorePoint
    from vmcellar.repository.repository import Repository

PACKS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class DamagedRange:
    """`length` bytes at `offset` of `disk` (a disk's target or an artifact's name) in one point cannot be restored."""

    point: str
    vm: str
    disk: str
    offset: int
    length: int


@dataclass(slots=True)
class Cause:
    """One damaged or missing object and, as the walk goes on, all that it touches."""

    kind: str
    name: str
    problem: str
    ranges: list[DamagedRange] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Problem:
    """Damage inside one node, by the offset from where the node's disk range begins."""

    offset: int
    length: int
    kind: str
    name: str
    reason: str


class Walk:
    """Checks points; `causes` and `packs` hold what came of it. One thread.

    `damaged` is what a deep check found, by (pack id, object id). `collect` are ids of packs of which `collected` shall
    tell all objects that the points need.
    """

    def __init__(
        self,
        repository: Repository,
        cancel: CancelToken,
        damaged: Mapping[tuple[bytes, bytes], str] | None = None,
        collect: Collection[bytes] = (),
    ) -> None:
        self.causes: dict[tuple[str, str], Cause] = {}
        self.packs: dict[bytes, PackRef] = {}
        self.objects = 0
        self._repository = repository
        self._cancel = cancel
        self._damaged = damaged or {}
        self.collected: dict[bytes, set[Location]] = {pack: set() for pack in collect}
        self._pack_problems: dict[bytes, str] = {}
        self._nodes: dict[bytes, tuple[_Problem, ...]] = {}
        self._away: set[bytes] = set()

    def points(self, points: Iterable[RestorePoint]) -> None:
        """Check all disks and artifacts of these points."""
        for point in points:
            for disk in point.disks:
                root = bytes.fromhex(disk.root)
                self._check(disk.level, [root])
                for problem in self._nodes.get(root, ()):
                    length = min(problem.length, disk.size - problem.offset)
                    touched = DamagedRange(point.id, point.vm, disk.target, problem.offset, length)
                    self.cause(problem.kind, problem.name, problem.reason).ranges.append(touched)
            for artifact in point.artifacts:
                self._check_artifact(point, artifact)

    def cause(self, kind: str, name: str, problem: str) -> Cause:
        """The cause with this name, a new one if there is none yet."""
        return self.causes.setdefault((kind, name), Cause(kind, name, problem))

    def _check(self, level: int, wanted: Sequence[bytes]) -> None:
        """Make sure that the problems of these nodes of one level are known."""
        self._cancel.check()
        new = [node for node in dict.fromkeys(wanted) if node != ABSENT and node not in self._nodes]
        found = self._read_nodes(new, level)
        if level == 0:
            self._check_leaves(found)
            return
        for node, data in found.items():
            self._nodes[node] = self._check_inner(node, data, level)

    def _read_nodes(self, wanted: Sequence[bytes], level: int) -> dict[bytes, bytes]:
        """The nodes that can be read; the others are noted. From the tier, never from memory."""
        located = self._repository.index.locate(wanted)
        found = {}
        for node in wanted:
            reason = self._reason(node, located.get(node), 1)
            try:
                if not reason:
                    found.update(self._repository.read_objects([node]))
                    continue
            except CancelledError:
                raise
            except VmcellarError as error:
                reason = ("node", node.hex(), error.message)
                self._away |= {node} if is_away(error) else set()
            self._nodes[node] = (_Problem(0, span_of(level), *reason),)
        return found

    def _check_inner(self, node: bytes, data: bytes, level: int) -> tuple[_Problem, ...]:
        try:
            children = nodes.decode_inner(data, level)
        except IntegrityError as error:
            return (_Problem(0, span_of(level), "node", node.hex(), error.message),)
        ids = [child.tobytes() for child in children]
        self._check(level - 1, ids)
        span = span_of(level - 1)
        return tuple(
            _Problem(p.offset + place * span, p.length, p.kind, p.name, p.reason)
            for place, child in enumerate(ids)
            for p in self._nodes.get(child, ())
        )

    def _check_leaves(self, leaves: Mapping[bytes, bytes]) -> None:
        decoded: dict[bytes, Rows] = {}
        for node, data in leaves.items():
            try:
                decoded[node] = nodes.decode_leaf(data, 0)
            except IntegrityError as error:
                self._nodes[node] = (_Problem(0, span_of(0), "node", node.hex(), error.message),)
        located = self._repository.index.locate({chunk for rows in decoded.values() for chunk in _ids(rows)})
        for node, rows in decoded.items():
            self._nodes[node] = tuple(self._row_problems(rows, located))

    def _row_problems(self, rows: Rows, located: Mapping[bytes, Location]) -> Iterable[_Problem]:
        for chunk, row in zip(_ids(rows), rows, strict=True):
            needed = int(row["chunk_offset"]) + int(row["length"])
            reason = self._reason(chunk, located.get(chunk), needed)
            if reason:
                yield _Problem(int(row["offset"]), int(row["length"]), *reason)

    def _reason(self, wanted: bytes, found: Location | None, length: int) -> tuple[str, str, str] | None:
        """None when the object lies in a whole pack, else (kind, name, what is wrong) of the cause."""
        self.objects += 1
        if found is None:
            return "chunk", wanted.hex(), "it is in no pack that the index names"
        if found.pack.id in self.collected:
            self.collected[found.pack.id].add(found)
        problem = self._pack_problem(found.pack)
        if problem:
            return "pack", found.pack.key, problem
        if found.length < length:
            return "chunk", wanted.hex(), f"it has {found.length} bytes, and a map asks for {length}"
        broken = self._damaged.get((found.pack.id, wanted))
        return (kind_of(found), wanted.hex(), broken) if broken else None

    def _pack_problem(self, pack: PackRef) -> str:
        if pack.id not in self.packs:
            self.packs[pack.id] = pack
            self._pack_problems[pack.id] = pack_problem(self._repository, pack)
        return self._pack_problems[pack.id]

    def damaged_nodes(self) -> list[bytes]:
        """The ids of map nodes that could not be read, though their place could be asked."""
        found = (bytes.fromhex(name) for kind, name in self.causes if kind == "node")
        return [node for node in found if node not in self._away]

    def is_gone(self, pack: PackRef) -> bool:
        """Whether the pack is missing or cut short; False while that cannot be told."""
        if not self._pack_problems[pack.id]:
            return False
        try:
            return self._repository.tier.size(pack.key) != pack.size
        except NotFoundError:
            return True
        except CancelledError:
            raise
        except VmcellarError:
            return False

    def _check_artifact(self, point: RestorePoint, artifact: Artifact) -> None:
        ids = [bytes.fromhex(chunk) for chunk in artifact.chunks]
        located = self._repository.index.locate(ids)
        for chunk in ids:
            reason = self._reason(chunk, located.get(chunk), 1)
            if reason:
                touched = DamagedRange(point.id, point.vm, artifact.name, 0, artifact.size)
                self.cause(*reason).ranges.append(touched)


def kind_of(found: Location) -> str:
    """What a cause calls this object."""
    return "node" if found.what == WHAT_NODE else "chunk"


def pack_problem(repository: Repository, pack: PackRef) -> str:
    """Empty when the pack lies on the tier with its right length, else what is wrong with it."""
    try:
        size = repository.tier.size(pack.key)
    except CancelledError:
        raise
    except VmcellarError as error:
        return f"pack {pack.key}: {error.message}"
    if size == pack.size or _has_whole_copy(repository.tier, pack):
        return ""
    return f"pack {pack.key} has {size} bytes instead of {pack.size}: it is cut short"


def pack_problems(repository: Repository, packs: Iterable[PackRef]) -> dict[bytes, str]:
    """The same of many packs, by their ids; many at once where each asks a server."""
    asked = list(dict.fromkeys(packs))
    if repository.tier.kind == "local" or len(asked) < 2:
        return {pack.id: pack_problem(repository, pack) for pack in asked}
    with ThreadPoolExecutor(PACKS_AT_ONCE, thread_name_prefix="packs") as pool:
        found = pool.map(lambda pack: pack_problem(repository, pack), asked)
        return {pack.id: problem for pack, problem in zip(asked, found, strict=True)}


def _has_whole_copy(tier: Tier, pack: PackRef) -> bool:
    """Whether another place of the tier has the pack with its right length, where the first has it cut short."""
    if isinstance(tier, Copies):
        for copy in tier.copies(pack.key):
            with suppress(NotFoundError):
                if copy.size(pack.key) == pack.size:
                    return True
    return False


def _ids(rows: Rows) -> list[bytes]:
    data = rows["chunk"].tobytes()
    return [data[start : start + ID_BYTES] for start in range(0, len(data), ID_BYTES)]
