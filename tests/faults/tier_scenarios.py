"""tiers move: packs that cool, and the mirrors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from tests.faults.cellar import Cellar
from tests.faults.scenario import nothing, scenario
from tests.faults.upkeep_scenarios import history
from vmcellar.config.prices import Speed
from vmcellar.errors import PermanentError
from vmcellar.folders import sync_folder
from vmcellar.repository.points import RestorePoint
from vmcellar.repository.repository import Repository
from vmcellar.restore.as_thawed import restore_readable
from vmcellar.restore.plan import make_plan
from vmcellar.restore.report import RestoreTarget
from vmcellar.restore.thaw import ThawRecords, plan_thaw, request_thaw
from vmcellar.tiers.base import ArchiveState
from vmcellar.tiers.cellar import CellarTier
from vmcellar.tiers.local import LocalTier
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


class Asleep(LocalTier):
    """A directory whose packs must be thawed. What was asked for are folders of `asked`, and each request a step."""

    asked: Path
    once_asked: Literal["thawing", "thawed"] = "thawing"

    def thaw_state(self, keys: Iterable[str]) -> Mapping[str, ArchiveState]:
        return {key: self._state(key) for key in keys}

    def _state(self, key: str) -> ArchiveState:
        asked = (self.asked / key.rpartition("/")[2]).exists()
        return ArchiveState(key, self.size(key), self.name, self.once_asked if asked else "archived")

    def thaw(self, keys: Iterable[str], days: int, speed: Speed) -> None:
        assert (days, speed) == (3, "bulk")
        for key in keys:
            if not (self.asked / key.rpartition("/")[2]).exists():  # asked for twice, it is paid for once
                (self.asked / key.rpartition("/")[2]).mkdir()
                sync_folder(self.asked)


def _asleep(cellar: Cellar, once_asked: Literal["thawing", "thawed"] = "thawing") -> Repository:
    """Opened so that what lies on cold must be thawed."""
    repository = cellar.open()
    cold = Asleep(cellar.folder / "cold", name="cold")
    cold.once_asked = once_asked
    cold.asked = cellar.folder / "asked"
    assert isinstance(repository.tier, CellarTier)
    repository.tier._others["cold"]._tier = cold
    return repository


def _archived(cellar: Cellar) -> None:
    """All packs are on cold."""
    _tiered(cellar)
    assert _move(cellar, 40).ok
    (cellar.folder / "asked").mkdir()


def _request_thaw(cellar: Cellar) -> None:
    """As `vmcellar thaw` of the newest point."""
    repository = _asleep(cellar)
    try:
        newest = max(repository.points(), key=lambda point: point.time)
        plan = plan_thaw(repository, make_plan(repository, newest), {}, 3)
        request_thaw(repository, plan, "bulk", ThawRecords(cellar.config.state, repository))
    finally:
        repository.close()


def _requests_are_known(cellar: Cellar) -> set[str]:
    """Whatever was asked for, and may cost money, is in a record; what was."""
    cellar.check()
    asked = {path.name for path in (cellar.folder / "asked").iterdir()}
    repository = cellar.open()
    try:
        records = ThawRecords(cellar.config.state, repository).all()
    finally:
        repository.close()
    assert len(records) <= 2, "one, and for an instant that which it replaces"
    assert asked <= {key.rpartition("/")[2] for record in records for key in record.keys}
    return asked


def _requested(cellar: Cellar) -> None:
    """All that the newest point needs was asked for, and nothing else."""
    asked = _requests_are_known(cellar)
    repository = cellar.open()
    try:
        newest = max(repository.points(), key=lambda point: point.time)
        needed = {key.rpartition("/")[2] for key in make_plan(repository, newest).keys if key.startswith("data/")}
        (record,) = ThawRecords(cellar.config.state, repository).all()
    finally:
        repository.close()
    assert asked == needed
    assert needed == {key.rpartition("/")[2] for key in record.keys}


def _newest_packs(repository: Repository) -> tuple[RestorePoint, list[str]]:
    newest = max(repository.points(), key=lambda point: point.time)
    return newest, sorted(key for key in make_plan(repository, newest).keys if key.startswith("data/"))


def _half_thawed(cellar: Cellar) -> None:
    """One of the packs that the newest point needs can be read."""
    _archived(cellar)
    repository = _asleep(cellar)
    _, keys = _newest_packs(repository)
    repository.close()
    assert len(keys) > 1
    (cellar.folder / "asked" / keys[0].rpartition("/")[2]).mkdir()


def _restore_as_thawed(cellar: Cellar) -> None:
    """As `restore --readable`, once before and once after the rest is thawed; done already if it says so."""
    repository = _asleep(cellar, "thawed")
    newest, keys = _newest_packs(repository)
    target = RestoreTarget(cellar.folder / "out", "raw")
    try:
        restore_readable(repository, newest, target)
        for key in keys[1:]:
            (cellar.folder / "asked" / key.rpartition("/")[2]).mkdir(exist_ok=True)
        sync_folder(cellar.folder / "asked")
        restore_readable(repository, newest, target)
    except PermanentError as error:
        assert "exists already" in error.message
        assert (cellar.folder / "out" / "domain.xml").exists()
    finally:
        repository.close()


def _restored(cellar: Cellar) -> None:
    newest = max(cellar.check(), key=lambda point: point.time)
    for target, expected in cellar.disks_of(newest).items():
        assert (cellar.folder / "out" / f"{target}.raw").read_bytes() == expected
    assert (cellar.folder / "out" / "domain.xml").exists()


def _new_tier(cellar: Cellar) -> None:
    """Folders that the configuration names as tiers, and that are none yet."""
    history(cellar)
    for name in ("warm", "cold"):
        (cellar.folder / name).mkdir()


def _add_tier(cellar: Cellar) -> None:
    for name in ("warm", "cold"):
        add_tier(cellar.config, name)


def _added(cellar: Cellar) -> None:
    assert _move(cellar, 10).ok
    _cooled(cellar)


SCENARIOS = (
    scenario("tiers-add", _new_tier, _add_tier, settled=nothing, finished=_added),
    scenario("tiers-move", _tiered, _cool, finished=_cooled),
    scenario("tiers-copies", _with_two_copies, _freeze, finished=_frozen),
    scenario("tiers-bring", _cooled_before, _bring, finished=_brought),
    scenario("tiers-thaw", _archived, _request_thaw, settled=_requests_are_known, finished=_requested),
    scenario("restore-as-thawed", _half_thawed, _restore_as_thawed, finished=_restored),
)
