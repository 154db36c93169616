"""Repair: what is damaged or missing comes back from a copy, whole or not at all, and nothing readable is destroyed."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.restore.test_restore import MIB, cut, damage, files, flip_one
from tests.restore.test_scrub import reopened, two_points
from tests.restore.world import Settings, World, random_disk
from vmcellar.errors import CancelledError, PermanentError, UsageError
from vmcellar.progress import CancelToken
from vmcellar.repository import leases
from vmcellar.repository.packs import PackRef
from vmcellar.repository.repair import RepairReport, RepairRequest, repair
from vmcellar.repository.repository import Repository
from vmcellar.repository.scrub import verify_all
from vmcellar.repository.scrub_sample import Sample, parse_share
from vmcellar.tiers.base import Tier, TierReader
from vmcellar.tiers.local import LocalTier

DEEP = RepairRequest(deep=True)


def copy_of(world: World, tmp_path: Path) -> Path:
    """A mirror of the repository as it is now."""
    return Path(shutil.copytree(world.settings.hot, tmp_path / "copy"))


def mended(world: World, copy: Path, request: RepairRequest = DEEP) -> RepairReport:
    return repair(reopened(world), LocalTier(copy, name="copy"), request)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def stored(folder: Path) -> dict[str, bytes]:
    """All but what upkeep notes: those of damage come and go."""
    return {name: data for name, data in tree(folder).items() if name.split("/")[0] not in ("index", "staging")}


@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
@pytest.mark.parametrize("kind", ["data", "meta", "points", "index"])
def test_every_kind_of_object_comes_back_byte_by_byte(world: World, tmp_path: Path, kind: str, how: str) -> None:
    two_points(world)
    copy = copy_of(world, tmp_path)
    before = stored(world.settings.hot)
    path = max(files(world, kind), key=lambda path: path.stat().st_size)
    if how == "missing":
        path.unlink()
    else:
        damage(path, flip_one if how == "flipped" else cut)
    request = RepairRequest(path.name, deep=True) if (kind, how) == ("points", "missing") else DEEP
    report = mended(world, copy, request)
    assert report.after.ok, report
    assert not report.not_repaired
    assert stored(world.settings.hot) == before
    assert (kind, how) == ("index", "missing") or path.read_bytes() == (
        copy / path.relative_to(world.settings.hot)
    ).read_bytes()
    assert verify_all(reopened(world), deep=True).ok
    assert world.repository.index.lost() == set()


def test_all_packs_and_the_index_gone(world: World, tmp_path: Path) -> None:
    two_points(world)
    copy = copy_of(world, tmp_path)
    for folder in ("data", "meta", "index"):
        shutil.rmtree(world.settings.hot / folder)
    report = mended(world, copy, RepairRequest())
    assert report.after.ok, report
    assert verify_all(reopened(world), deep=True).ok


@pytest.mark.parametrize("harm", [flip_one, cut, None])
def test_a_copy_that_is_no_better_replaces_nothing(world: World, tmp_path: Path, harm: object) -> None:
    two_points(world)
    path = max(files(world, "data"), key=lambda path: path.stat().st_size)
    copy = copy_of(world, tmp_path)
    damage(path, flip_one)
    bad = copy / path.relative_to(world.settings.hot)
    bad.unlink() if harm is None else damage(bad, harm)  # type: ignore[arg-type]
    before = path.read_bytes()
    report = mended(world, copy)
    assert not report.after.ok
    assert [each.kind for each in report.not_repaired] == ["pack"]
    assert "no whole copy" in report.not_repaired[0].reason or "no copy" in report.not_repaired[0].reason
    assert path.read_bytes() == before
    assert not list((world.settings.hot / "staging").glob("repair-*"))


def test_a_dry_run_says_what_it_would_do_and_changes_no_object(world: World, tmp_path: Path) -> None:
    two_points(world)
    copy = copy_of(world, tmp_path)
    path = files(world, "data")[0]
    damage(path, flip_one)
    files(world, "meta")[0].unlink()
    before = stored(world.settings.hot)
    report = mended(world, copy, RepairRequest(deep=True, dry_run=True))
    assert {each.was for each in report.repaired} <= {"damaged", "missing"}
    assert report.repaired
    assert not report.after.ok
    assert stored(world.settings.hot) == before


def test_a_point_that_only_the_copy_has_is_told_and_not_brought_back_unasked(world: World, tmp_path: Path) -> None:
    first, _ = two_points(world)
    copy = copy_of(world, tmp_path)
    (world.settings.hot / "points" / first.id).unlink()
    report = mended(world, copy)
    assert report.elsewhere == (first.id,)
    assert not report.repaired
    report = mended(world, copy, RepairRequest(first.id))
    assert [(each.kind, each.was) for each in report.repaired] == [("point", "missing")]
    assert reopened(world).point(first.id) == first


def test_a_copy_of_another_repository_is_refused(world: World, tmp_path: Path) -> None:
    two_points(world)
    other = Settings(tmp_path / "other-state", tmp_path / "other")
    Repository.init(other).close()
    with pytest.raises(UsageError, match="not a copy of"):
        mended(world, other.hot)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no copy"):
        mended(world, tmp_path / "empty")


def test_beside_a_gc_it_waits_its_turn(world: World, tmp_path: Path) -> None:
    two_points(world)
    copy = copy_of(world, tmp_path)
    with leases.holding(world.repository.tier, world.repository.keyring, leases.GC):
        with pytest.raises(PermanentError, match="gc runs already"):
            mended(world, copy)
        assert mended(world, copy, RepairRequest(dry_run=True)).after.ok


class StoppedTier(LocalTier):
    """A copy at whose third opened pack the user presses Ctrl-C."""

    token: CancelToken
    opened = 0

    def open(self, key: str) -> TierReader:
        self.opened += 1
        if self.opened == 3:
            self.token.cancel()
        return super().open(key)


def test_stopped_in_the_middle_it_goes_on_the_next_time(world: World, tmp_path: Path) -> None:
    world.add({"vda": random.Random(3).randbytes(6 * MIB)}, pack_bytes=MIB)
    copy = copy_of(world, tmp_path)
    shutil.rmtree(world.settings.hot / "data")
    stopped = StoppedTier(copy, name="copy")
    stopped.token = CancelToken()
    with pytest.raises(CancelledError):
        repair(reopened(world), stopped, DEEP, cancel=stopped.token)
    assert len(files(world, "data")) == 2
    assert not list((world.settings.hot / "staging").glob("repair-*"))
    assert mended(world, copy).after.ok


class PlainTier:
    """A tier without `replace`, as object stores are."""

    def __init__(self, tier: Tier) -> None:
        self._tier = tier

    def __getattr__(self, name: str) -> object:
        if name == "replace":
            raise AttributeError(name)
        return getattr(self._tier, name)


def test_where_nothing_can_be_replaced_at_once_the_damaged_bytes_are_set_aside(world: World, tmp_path: Path) -> None:
    two_points(world)
    copy = copy_of(world, tmp_path)
    path = files(world, "data")[0]
    damage(path, flip_one)
    damaged = path.read_bytes()
    repository = reopened(world)
    repository.tier = PlainTier(repository.tier)  # type: ignore[assignment]
    assert repair(repository, LocalTier(copy), DEEP).after.ok
    assert [each.read_bytes() for each in files(world, "quarantine")] == [damaged]


# samples


def test_samples_read_everything_in_turn_and_what_they_find_is_named(world: World, tmp_path: Path) -> None:
    rng = random.Random(5)
    for _ in range(5):
        world.last = None
        world.add({"vda": random_disk(rng, 2 * MIB)}, pack_bytes=MIB)
    bad = max(files(world, "data"), key=lambda path: path.stat().st_size)  # surely holds disk chunks
    damage(bad, flip_one)
    path = tmp_path / "scrubbed.sqlite"
    repository = reopened(world)
    every = {pack.id.hex() for pack in repository.index.packs()}
    seen: list[str] = []
    reports = []
    for run in range(5):
        sample = Sample(path, 0.2, seed=run, clock=lambda: 1000.0 + len(seen))

        def choose(packs: list[PackRef], sample: Sample = sample) -> list[PackRef]:
            picked = sample.pick("pack", packs, lambda pack: pack.id.hex())
            seen.extend(pack.id.hex() for pack in picked)
            return picked

        reports.append(verify_all(repository, deep=True, choose=choose))
        sample.done()
    assert set(seen) == every
    assert len(seen) < len(every) * 2
    assert sum(not report.ok for report in reports) in (1, 2)
    assert any(f.ranges for report in reports for f in report.findings)


def test_equal_seeds_pick_equally(tmp_path: Path) -> None:
    def picked(seed: int) -> list[str]:
        return Sample(tmp_path / f"{seed}.sqlite", 0.1, seed).pick("pack", [f"{n:03}" for n in range(100)], str)

    assert picked(7) == picked(7)
    assert picked(7) != picked(8)
    assert len(picked(7)) == 10


@pytest.mark.parametrize("text", ["5", "0%", "101%", "x%", "nan%", "-1%"])
def test_a_share_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="no share"):
        parse_share(text)
