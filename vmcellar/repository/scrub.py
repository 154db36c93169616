"""scrub: find what is damaged or missing, and name the points, disks and ranges that it touches.

Shallow: every point, map node and index part is read and checked, and every chunk is located in a pack that is on the
tier with its right length. Deep: every pack is also read back from the tier, and every object of it decrypted,
decompressed and compared with its id. Nodes that points share are checked once, so the cost is that of what is
stored, not of what points show.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmcellar.errors import CancelledError, IntegrityError, VmcellarError
from vmcellar.memory import keep_freed_memory
from vmcellar.progress import CancelToken, ProgressSink, no_progress
from vmcellar.repository import envelope, evidence, index_parts, layout
from vmcellar.repository.packs import Location, PackRef, groups
from vmcellar.repository.points import RestorePoint
from vmcellar.repository.points import decode as decode_point
from vmcellar.repository.restore_pace import pay
from vmcellar.repository.salvage import read_each
from vmcellar.repository.scrub_copies import contents, damaged_copies, is_away, places
from vmcellar.repository.scrub_walk import Cause, DamagedRange, Walk, kind_of
from vmcellar.tiers.base import ArchivedError, NotFoundError

if TYPE_CHECKING:
    from vmcellar.repository.repository import Repository

_log = logging.getLogger(__name__)

Choice = Callable[[list[PackRef]], list[PackRef]]
"""Of the packs that points need, those that a deep check reads."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One damaged or missing object: `kind` is point, index, pin, evidence, pack, copy, node, chunk; `name` its key or
    id, for one copy of a pack with the tier it lies on.

    `ranges` are all bytes of all points that cannot be restored because of it: none for an index part, which
    `vmcellar rebuild-index` makes anew, and none for a pack whose objects are whole but its table of contents is not.
    """

    kind: str
    name: str
    problem: str
    ranges: tuple[DamagedRange, ...]


@dataclass(frozen=True, slots=True)
class ScrubReport:
    """What was checked and what was found. `bytes` are plain bytes of objects that a deep check decoded; `asleep` are
    packs that it could not read, as they lie in an archive class: nothing is known of their contents.
    """

    points: int
    packs: int
    objects: int
    bytes: int
    findings: tuple[Finding, ...]
    asleep: int = 0

    @property
    def ok(self) -> bool:
        """Whether everything that was checked is whole."""
        return not self.findings


@dataclass(slots=True)
class _PackResult:
    """What a deep check of one pack came to. `problem` is about the pack itself, `damaged` about objects of it, of
    which those `away` could not be asked for now, `copies` about single copies where there are several; one that is
    `asleep` in an archive class was not read.
    """

    pack: PackRef
    problem: str = ""
    damaged: list[tuple[Location, str]] = field(default_factory=list)
    away: set[Location] = field(default_factory=set)
    copies: list[tuple[str, str]] = field(default_factory=list)
    objects: int = 0
    bytes: int = 0
    asleep: bool = False


def verify_point(
    repository: Repository,
    point: RestorePoint,
    *,
    deep: bool = False,
    choose: Choice = list,
    progress: ProgressSink = no_progress,
    cancel: CancelToken | None = None,
) -> ScrubReport:
    """Check one point; damage is in the report, not raised. CancelledError when stopped.

    `progress` counts plain bytes of stage "verify". Objects that a deep check finds damaged, and all of packs that are
    missing or cut short, are noted in the index, so that the next backup stores them anew (pitfall 21); what a tier
    that is away does not give is a finding, and is not noted. A deep check reads the packs that `choose` picks of those
    that the point needs.
    """
    with repository.reading(f"verify {point.vm}"):
        return _verify(repository, [point], _refresh(repository), choose if deep else None, progress, cancel)


def verify_all(
    repository: Repository,
    *,
    deep: bool = False,
    choose: Choice = list,
    some: Callable[[list[RestorePoint]], list[RestorePoint]] = list,
    progress: ProgressSink = no_progress,
    cancel: CancelToken | None = None,
) -> ScrubReport:
    """Check every point and index part, and if `deep` the packs; see `verify_point`. Raises when a listing fails.

    Of the points that can be read, the maps of those that `some` picks are walked.
    """
    with repository.reading("verify"):
        points, causes = check_points(repository)
        causes += check_index(repository) + check_pins(repository) + check_evidence(repository)
        _refresh(repository)
        chosen = some(points)
        every = len(chosen) == len(points)
        return _verify(repository, chosen, causes, choose if deep else None, progress, cancel, every=every)


def _verify(
    repository: Repository,
    points: list[RestorePoint],
    causes: list[Cause],
    choose: Choice | None,
    progress: ProgressSink,
    cancel: CancelToken | None,
    *,
    every: bool = False,
) -> ScrubReport:
    keep_freed_memory()
    cancel = cancel or CancelToken()
    walk = Walk(repository, cancel)
    walk.points(points)
    packs, objects = len(walk.packs), walk.objects
    results: list[_PackResult] = []
    _note_gone(repository, points, [pack for pack in walk.packs.values() if walk.is_gone(pack)], cancel)
    _note(repository, list(repository.index.locate(walk.damaged_nodes()).values()))
    if choose is not None:
        needed = dict(walk.packs)
        if every and (causes or walk.causes):  # what cannot be read may need any pack, and the next backup rests on it
            needed |= {pack.id: pack for pack in repository.index.packs()}
        chosen = choose(sorted(needed.values(), key=lambda pack: pack.id))
        packs, results = len(chosen), _read_packs(repository, chosen, progress, cancel)
        if any(result.problem or result.damaged for result in results):
            _salvage(repository, points, results, cancel)
            walk = _walk_again(repository, points, results, cancel)
    findings = [Finding(c.kind, c.name, c.problem, tuple(c.ranges)) for c in [*causes, *walk.causes.values()]]
    for result in results:
        findings += [Finding("copy", f"{result.pack.key} on {name}", problem, ()) for name, problem in result.copies]
    size = sum(result.bytes for result in results)
    if choose is not None:
        objects = sum(result.objects for result in results)
    asleep = sum(result.asleep for result in results)
    return ScrubReport(len(points), packs - asleep, objects, size, tuple(findings), asleep)


def _salvage(
    repository: Repository, points: list[RestorePoint], results: list[_PackResult], cancel: CancelToken
) -> None:
    """Check the objects of packs whose own table of contents is of no use: the index knows their places, too."""
    broken = {result.pack.id: result for result in results if result.problem}
    if broken:
        walk = Walk(repository, cancel, collect=broken)
        walk.points(points)
        for pack_id, found in walk.collected.items():
            _read_objects(repository, broken[pack_id], sorted(found, key=lambda location: location.offset), cancel)


def _walk_again(
    repository: Repository, points: list[RestorePoint], results: list[_PackResult], cancel: CancelToken
) -> Walk:
    """Attribute the damage to ranges. A chunk of which the index knows a better copy elsewhere is whole."""
    damaged = {(found.pack.id, found.chunk): reason for result in results for found, reason in result.damaged}
    _note(repository, [found for each in results for found, _ in each.damaged if found not in each.away])
    walk = Walk(repository, cancel, damaged)
    walk.points(points)
    for result in results:  # also what no point needs any more, or has a better copy, is said
        for found, reason in result.damaged:
            walk.cause(kind_of(found), found.chunk.hex(), reason)
        if result.problem:
            walk.cause("pack", result.pack.key, result.problem)
    return walk


def _note(repository: Repository, found: list[Location]) -> None:
    known = repository.index.known(location.chunk for location in found)
    try:
        repository.index.note_damaged(location for location in found if location.chunk in known)
    except CancelledError:
        raise
    except VmcellarError as error:
        _log.warning("damaged objects could not be noted in the index: %s", error.message)


def _note_gone(repository: Repository, points: list[RestorePoint], gone: list[PackRef], cancel: CancelToken) -> None:
    """Note all that points need of packs that are not there any more: nothing may be deduplicated against it."""
    if gone:
        walk = Walk(repository, cancel, collect={pack.id for pack in gone})
        walk.points(points)
        _note(repository, [found for each in walk.collected.values() for found in each])


def check_points(repository: Repository) -> tuple[list[RestorePoint], list[Cause]]:
    """All points that can be read, and a cause for each other. Raises when the listing fails."""
    points, causes = [], []
    for key, _ in repository.tier.list(layout.POINTS):
        try:
            name = key.removeprefix(layout.POINTS)
            points.append(decode_point(repository.keyring, repository.id, name, repository.tier.get(key)))
        except CancelledError:
            raise
        except VmcellarError as error:
            causes.append(Cause("point", key, error.message))
    return points, causes


def _refresh(repository: Repository) -> list[Cause]:
    """Bring the index cache up to date; the causes when an index part is in the way of that."""
    try:
        repository.index.refresh()
    except IntegrityError:
        return check_index(repository)
    return []


def check_index(repository: Repository) -> list[Cause]:
    """Index parts are read from the tier, not from this host's cache of them."""
    causes = []
    for key, _ in repository.tier.list(layout.INDEX):
        try:
            part_id = bytes.fromhex(key.removeprefix(layout.INDEX))
            index_parts.decode(repository.keyring, part_id, repository.tier.get(key))
        except NotFoundError:  # gc has put it together with others since the listing
            continue
        except CancelledError:
            raise
        except (VmcellarError, ValueError) as error:
            causes.append(Cause("index", key, str(error)))
    return causes


def check_pins(repository: Repository) -> list[Cause]:
    """A cause for each pin that cannot be read; it still pins."""
    causes = []
    for key, _ in repository.tier.list(layout.PINS):
        try:
            data = repository.tier.get(key)
            envelope.unwrap(repository.keyring, layout.PIN_MAGIC, layout.PIN_SEAL, key.encode(), data)
        except NotFoundError:  # removed since the listing
            continue
        except CancelledError:
            raise
        except VmcellarError as error:
            causes.append(Cause("pin", key, error.message))
    return causes


def check_evidence(repository: Repository) -> list[Cause]:
    """A cause for each piece of evidence that cannot be read, or is not signed by this repository."""
    causes = []
    for key, _ in repository.tier.list(layout.EVIDENCE):
        try:
            evidence.decode(
                repository.keyring, repository.id, key.removeprefix(layout.EVIDENCE), repository.tier.get(key)
            )
        except NotFoundError:  # gc removed it since the listing
            continue
        except CancelledError:
            raise
        except VmcellarError as error:
            causes.append(Cause("evidence", key, error.message))
    return causes


def _read_packs(
    repository: Repository, packs: Iterable[PackRef], progress: ProgressSink, cancel: CancelToken
) -> list[_PackResult]:
    """Deep check of packs, one thread each on all cores; memory is one read buffer and a chunk per thread."""
    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="scrub") as pool:
        try:
            return list(pool.map(lambda pack: _read_pack(repository, pack, progress, cancel), packs))
        finally:
            pool.shutdown(cancel_futures=True)


def _read_pack(repository: Repository, pack: PackRef, progress: ProgressSink, cancel: CancelToken) -> _PackResult:
    result = _PackResult(pack)
    try:
        where = places(repository.tier, pack)
        locations = contents(where, repository.keyring, pack)
    except CancelledError:
        raise
    except ArchivedError:
        result.asleep = True
        return result
    except VmcellarError as error:
        result.problem = error.message
        return result
    result.damaged += _misplaced(repository, locations)
    result.copies = damaged_copies(where, repository.keyring, pack, repository.restore_pace, cancel)
    _read_objects(repository, result, locations, cancel, progress)
    return result


def _read_objects(
    repository: Repository,
    result: _PackResult,
    locations: Sequence[Location],
    cancel: CancelToken,
    progress: ProgressSink = no_progress,
) -> None:
    for group in groups(locations):
        for found, content in read_each(repository.tier, repository.keyring, group):
            cancel.check()
            if isinstance(content, ArchivedError):
                result.asleep = True
                return
            result.objects += 1
            if isinstance(content, VmcellarError):
                result.damaged.append((found, content.message))
                result.away |= {found} if is_away(content) else set()
            else:
                result.bytes += found.length
                progress("verify", found.length)
        pay(repository, group, cancel)


def _misplaced(repository: Repository, locations: list[Location]) -> list[tuple[Location, str]]:
    """Objects for which the index says something else about this pack than the pack does."""
    index = repository.index.locate(location.chunk for location in locations)
    own = {(found.chunk, found.ordinal): found for found in locations}
    wrong = []
    for chunk, said in index.items():
        if said.pack.id == locations[0].pack.id and own.get((chunk, said.ordinal)) != said:
            wrong.append((said, f"pack {said.pack.key}: the index names another place for {chunk.hex()}"))
    return wrong
