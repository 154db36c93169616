"""tiers move: packs that cool, and the mirrors."""

from __future__ import annotations

from pathlib import Path

from tests.faults.cellar import Cellar
from tests.faults.scenario import scenario
from tests.faults.upkeep_scenarios import history
from vmcellar.restore.plan import make_plan
from vmcellar.tiers.registry import add_tier
from vmcellar.upkeep.bring import bring
from vmcellar.upkeep.rebalance import RebalanceReport, rebalance
from vmcellar.upkeep.rules import rules_of

DAYS = 86400


def _tiered(cellar: Cellar) -> None:
    """A history, all of it on hot, with one point that a prune dropped after the mirrors were made."""
    history(cellar)
    for name in ("warm", "cold"):
        (cellar.folder / name).mkdir()
    for name in ("warm", "cold"):
        add_tier(cellar.config, name)
    _move(cellar, 0)
    gone = cellar.back_up_and_note("gone", 7)
    cellar.forget(gone)
    (cellar.hot / "points" / gone).unlink()
    cellar.back_up_and_note("db", 8)


def _move(cellar: Cellar, days: float) -> RebalanceReport:
    """As a command that runs so many days after the newest point; all cool at once."""
    repository = cellar.open()
    newest = max((point.time for point in repository.points()), default=0.0)
    repository.clock = lambda: newest + days * DAYS
    try:
        return rebalance(repository, rules_of(cellar.config), at_once=1)
    finally:
        repository.close()


def _packs(folder: Path) -> set[str]:
    return {path.name for path in (folder / "data").rglob("*") if path.is_file()}


def _cool(cellar: Cellar) -> None:
    assert _move(cellar, 10).ok


def _cooled(cellar: Cellar) -> None:
    """Every pack is on warm and nowhere else, and the mirrors have what hot has."""
    points = {point.id for point in cellar.check()}
    needed = _packs(cellar.folder / "warm")
    assert needed
    assert _packs(cellar.folder / "cold") == set()
    assert not needed & _packs(cellar.hot)
    assert _move(cellar, 10).moves == ()
    for name in ("warm", "cold"):
        assert {path.name for path in (cellar.folder / name / "points").iterdir()} == points


def _with_two_copies(cellar: Cellar) -> None:
    (cellar.folder / "copies").write_text("2")
    _tiered(cellar)


def _freeze(cellar: Cellar) -> None:
    assert _move(cellar, 40).ok


def _frozen(cellar: Cellar) -> None:
    """With two copies: on cold, and on warm, the nearest before it."""
    cellar.check()
    assert _packs(cellar.folder / "warm") == _packs(cellar.folder / "cold") != set()
    assert _move(cellar, 40).moves == ()


def _cooled_before(cellar: Cellar) -> None:
    _tiered(cellar)
    _cool(cellar)


def _bring(cellar: Cellar) -> None:
    """As `thaw --fetch` does once packs can be read: those of the newest point come to hot."""
    repository = cellar.open()
    try:
        newest = max(repository.points(), key=lambda point: point.time)
        bring(repository, make_plan(repository, newest).keys, at_once=1)
    finally:
        repository.close()


def _brought(cellar: Cellar) -> None:
    """Hot has what the newest point needs, warm still has all, and nothing is left half-way."""
    cellar.check()
    repository = cellar.open()
    try:
        newest = max(repository.points(), key=lambda point: point.time)
        needed = {key.rpartition("/")[2] for key in make_plan(repository, newest).keys if key.startswith("data/")}
    finally:
        repository.close()
    assert needed
    assert needed <= _packs(cellar.hot)
    assert needed <= _packs(cellar.folder / "warm")
    assert not list((cellar.hot / "staging").glob("brings-*/*"))


SCENARIOS = (
    scenario("tiers-move", _tiered, _cool, finished=_cooled),
    scenario("tiers-copies", _with_two_copies, _freeze, finished=_frozen),
    scenario("tiers-bring", _cooled_before, _bring, finished=_brought),
)
