"""prune, pins, gc, consolidate and rebuild-index."""

from __future__ import annotations

import os
from pathlib import Path

from tests.faults.cellar import Cellar
from tests.faults.scenario import nothing, scenario
from vmcellar.config.jobs import KeepByAge
from vmcellar.repository import layout
from vmcellar.repository.rebuild import rebuild_index
from vmcellar.repository.repository import Repository
from vmcellar.upkeep import gc, pins, prune
from vmcellar.upkeep.consolidate import SMALL_MIN, consolidate
from vmcellar.upkeep.index_parts import FEWEST


def history(cellar: Cellar) -> None:
    """Four points of one VM, of which the first two may go, and one of another."""
    cellar.make()
    old = [cellar.back_up_and_note("web", seed) for seed in (1, 2)]
    for seed in (6, 4):
        cellar.back_up_and_note("web", seed)
    cellar.back_up_and_note("db", 3)
    cellar.forget(*old)


def _prune(cellar: Cellar) -> None:
    repository = cellar.open()
    rules = prune.rules_for_all(KeepByAge(last=2))
    plan = prune.plan(repository.points(), rules, pins=pins.pinned(repository), now=repository.clock())
    prune.drop(repository, plan)
    repository.close()


def _pruned(cellar: Cellar) -> None:
    assert len([point for point in cellar.check() if point.vm == "web"]) == 2


def _pin(cellar: Cellar) -> None:
    repository = cellar.open()
    point = repository.points()[0]
    if point.id not in pins.pinned(repository):
        pins.pin(repository, point, "keep")
    repository.close()


def _pinned(cellar: Cellar) -> None:
    repository = cellar.open()
    first = repository.points()[0].id
    assert [(each.point, each.pin and each.pin.note) for each in pins.listed(repository)] == [(first, "keep")]
    repository.close()
    _prune(cellar)
    assert first in {point.id for point in cellar.check()}


def _with_pin(cellar: Cellar) -> None:
    history(cellar)
    _pin(cellar)


def _unpin(cellar: Cellar) -> None:
    repository = cellar.open()
    for name in pins.pinned(repository):
        pins.unpin(repository, name)
    repository.close()


def _unpinned(cellar: Cellar) -> None:
    repository = cellar.open()
    assert pins.listed(repository) == []
    repository.close()
    cellar.check()


def _garbage(cellar: Cellar) -> None:
    history(cellar)
    _prune(cellar)


def _marked_garbage(cellar: Cellar) -> None:
    """What a first gc marked, and more garbage that a second one marks while it deletes."""
    _garbage(cellar)
    _gc(cellar)
    gone = cellar.back_up_and_note("gone", 7)
    cellar.forget(gone)
    (cellar.hot / "points" / gone).unlink()
    _staged(cellar).mkdir()
    for name in ("a.pack", "b.pack", ""):
        (_staged(cellar) / name).touch()
        os.utime(_staged(cellar) / name, (0, 0))


def _staged(cellar: Cellar) -> Path:
    """What a host that died long ago has left."""
    return cellar.hot / "staging" / f"commit-{'0' * 32}"


def _gc(cellar: Cellar) -> None:
    repository = cellar.open()
    gc.collect(repository, grace=0.0)
    repository.close()


def _collected(cellar: Cellar) -> None:
    """Nothing that no point needs is left after as many runs as it takes, and what died left no lease."""
    for _ in range(3):
        _gc(cellar)
    assert not _staged(cellar).exists()
    repository = cellar.open()
    report = gc.collect(repository, grace=0.0, dry_run=True)
    assert (report.packs, report.marked, report.deleted) == (report.needed, (), ())
    assert list(repository.tier.list("leases/")) == []
    repository.close()
    cellar.check()


def _many_small_packs(cellar: Cellar) -> None:
    """So many points of one VM that its small packs, of data and of metadata, are worth putting together."""
    cellar.make()
    for number in range(SMALL_MIN):
        cellar.back_up_and_note("db", number + 1)


def _consolidate(cellar: Cellar) -> None:
    repository = cellar.open()
    consolidate(repository)
    repository.close()


def _consolidated(cellar: Cellar) -> None:
    """One pack of each kind is left when gc has been there, nothing waits in staging, and no lease."""
    for _ in range(3):
        _gc(cellar)
    repository = cellar.open()
    assert [len(list(repository.tier.list(prefix))) for prefix in (layout.DATA, layout.META)] == [1, 1]
    assert consolidate(repository, dry_run=True).old == ()
    repository.close()
    _collected(cellar)


def _many_index_parts(cellar: Cellar) -> None:
    """As many as are worth putting together; nothing is garbage."""
    cellar.make()
    for number in range(FEWEST):
        cellar.back_up_and_note("db", number + 1)


def _merged(cellar: Cellar) -> None:
    """One index part is left, as no death leaves one that nobody takes away."""
    _gc(cellar)
    assert len(list((cellar.hot / "index").iterdir())) == 1
    _collected(cellar)


def _lost_index(cellar: Cellar) -> None:
    """A damaged and a missing index part."""
    history(cellar)
    parts = sorted((cellar.hot / "index").iterdir())
    parts[0].unlink()
    parts[1].chmod(0o600)
    parts[1].write_bytes(parts[1].read_bytes()[:-1])


def _rebuild(cellar: Cellar) -> None:
    repository = Repository.open(cellar.config, refresh=False)
    assert rebuild_index(repository).damaged == ()
    repository.close()


SCENARIOS = (
    scenario("prune", history, _prune, finished=_pruned),
    scenario("pin", history, _pin, finished=_pinned),
    scenario("unpin", _with_pin, _unpin, finished=_unpinned),
    scenario("gc-mark", _garbage, _gc, finished=_collected),
    scenario("gc-delete", _marked_garbage, _gc, finished=_collected),
    scenario("gc-merge", _many_index_parts, _gc, finished=_merged),
    scenario("consolidate", _many_small_packs, _consolidate, finished=_consolidated),
    scenario("rebuild-index", _lost_index, _rebuild, settled=nothing),
)
