"""An incremental backup heals what a scrub found lost, though the guest wrote nothing there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.cellar import Cellar, stand_ins
from tests.restore.test_restore import cut, damage, flip_one
from vmcellar.backup.heal import beside
from vmcellar.repository import evidence
from vmcellar.repository.repository import Repository
from vmcellar.repository.scrub import ScrubReport, verify_all
from vmcellar.sources.base import Extent


@pytest.fixture
def cellar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cellar:
    for module, name, value in stand_ins():
        monkeypatch.setattr(module, name, value)
    made = Cellar(tmp_path)
    made.make()
    return made


def scrubbed(cellar: Cellar) -> ScrubReport:
    repository = Repository.open(cellar.config)
    try:
        return verify_all(repository, deep=True)
    finally:
        repository.close()


def packs(cellar: Cellar, kind: str) -> list[Path]:
    return sorted((p for p in (cellar.hot / kind).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path: Path) -> None:
    damage(path, flip_one)


def shorten(path: Path) -> None:
    damage(path, cut)


@pytest.mark.parametrize("harm", [flip, shorten, Path.unlink])
@pytest.mark.parametrize("kind", ["data", "meta"])
def test_an_incremental_heals(cellar: Cellar, kind: str, harm: Callable[[Path], None]) -> None:
    cellar.back_up_and_note("db", 1)
    harm(packs(cellar, kind)[-1])
    found = scrubbed(cellar)
    assert not found.ok
    lost = [part for finding in found.findings for part in finding.ranges]
    assert lost or (kind, harm) == ("meta", flip)  # it may hit a node or an artifact
    cellar.back_up("db", "incremental")
    healed = [part for finding in scrubbed(cellar).findings for part in finding.ranges]
    assert {part.point for part in healed} <= {part.point for part in lost}
    assert not healed or kind == "meta"  # a map of an older disk may be another one than what is stored anew


def test_without_damage_only_changes_are_read(cellar: Cellar) -> None:
    cellar.back_up_and_note("db", 1)
    assert scrubbed(cellar).ok
    assert cellar.back_up("db", "incremental").bytes_read == 0


@pytest.mark.parametrize("verdict", ["passed", "failed"])
def test_evidence_against_a_point_makes_the_next_backup_read_everything(
    cellar: Cellar, verdict: evidence.Verdict
) -> None:
    cellar.back_up_and_note("db", 1)
    first = cellar.back_up("db", "incremental")
    repository = Repository.open(cellar.config)
    checks = (evidence.Check("boot", "alive", "nothing", ok=verdict == "passed"),)
    evidence.write(repository, evidence.Evidence(first.id, "db", "drill", verdict, 1.8e9, "host", checks))
    repository.close()
    second = cellar.back_up("db", "auto")
    assert second.kind == ("full" if verdict == "failed" else "incremental")
    assert ("evidence speaks against" in second.reason) == (verdict == "failed")
    assert cellar.back_up("db", "auto").kind == "incremental", "a full read ends the doubt"


def extents(*pairs: tuple[int, int]) -> list[Extent]:
    return [Extent(offset, length, zero=False) for offset, length in pairs]


def test_lost_ranges_keep_their_cuts_and_none_is_read_twice() -> None:
    dirty, lost = extents((10, 10), (40, 10)), extents((0, 10), (15, 10), (25, 5), (30, 30), (60, 10), (90, 20))
    wanted = extents((0, 10), (10, 10), (20, 5), (25, 5), (30, 10), (40, 10), (50, 10), (60, 10), (90, 5))
    assert beside(dirty, lost, 95) == wanted
