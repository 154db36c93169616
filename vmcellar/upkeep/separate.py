"""separate: what cooled and what every new point still needs, out of one pack into two.

A pack is as old as the youngest point that needs any of it, so one chunk that never changes keeps all of it on hot.
Packs of which at least half has cooled are rewritten: the cooled objects to packs of their own, which are then
moved away, the others to new packs that stay. As the half that stays is the smaller one, what is rewritten is at most
twice what cools. The old packs are marked for gc, as all that upkeep rewrites (vmcellar/upkeep/rewrite.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from vmcellar.progress import ProgressSink
from vmcellar.repository.layout import PACK_BLOCK
from vmcellar.upkeep import rewrite
from vmcellar.upkeep.rewrite import Rewritten
from vmcellar.upkeep.survey import Mixed

if TYPE_CHECKING:
    from vmcellar.repository.packs import Location
    from vmcellar.repository.repository import Repository


def worth(repository: Repository, mixed: Sequence[Mixed]) -> tuple[list[Mixed], tuple[str, ...]]:
    """Those to separate: at least half cooled, on hot, with keys at hand; and a note about others, if any."""
    found = {each.live.pack.id: each for each in mixed if _mostly_cooled(each)}
    usable, notes = rewrite.openable(repository, [each.live for each in found.values()])
    return [found[live.pack.id] for live in usable], notes


def _mostly_cooled(each: Mixed) -> bool:
    cooled = each.live.bytes - each.young_bytes
    return each.young_bytes > 0 and cooled >= each.young_bytes and cooled >= PACK_BLOCK


def separate(
    repository: Repository,
    mixed: Sequence[Mixed],
    check: Callable[[], None],
    progress: ProgressSink,
    pace: Callable[[int], None],
) -> Rewritten:
    """Rewrite these packs. `check` raises to stop; rounds that were done stay done. Reports packs as "rewrite". `pace`
    as in `rewrite.Rewriter`.
    """
    young = {each.live.pack.id: each for each in mixed}
    done = Rewritten()

    def parts(objects: Mapping[bytes, Location]) -> Sequence[Sequence[bytes]]:
        order = rewrite.as_they_lie(objects)
        stays = [chunk for chunk in order if young[objects[chunk].pack.id].is_young(objects[chunk].ordinal)]
        cooled = [chunk for chunk in order if not young[objects[chunk].pack.id].is_young(objects[chunk].ordinal)]
        return [stays, cooled]

    with ThreadPoolExecutor(thread_name_prefix="separate") as pool:
        rewriter = rewrite.Rewriter(repository, pool, check, progress, pace)
        for part in rewrite.rounds(each.live for each in mixed):
            done += rewriter.split(part, parts)
    return done
