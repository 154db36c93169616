"""A point whose packs lie in Glacier, as a user meets it: plan, thaw, wait, restore. Against the stand-in for Glacier.

The packs are moved into their class on the server, as a lifecycle rule of the bucket would.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab.glacier import Glacier
from lab.require import requires
from tests.cli.conftest import Cli, cli, quick_cost
from tests.tiers.frozen import MIB, SIZE, Frozen, Tiered, make_frozen, make_tiered
from vmcellar.config.prices import AWS_PRICES, Speed
from vmcellar.config.tiers import TierSettings
from vmcellar.policy.costs import offers
from vmcellar.restore.in_place import InPlace
from vmcellar.restore.report import RestoreTarget
from vmcellar.restore.restore import restore_point
from vmcellar.restore.thaw import ThawRecord, ThawRecords, refuse_archived
from vmcellar.tiers.base import ArchivedError
from vmcellar.tiers.local import LocalTier
from vmcellar.tiers.s3 import S3Tier

__all__ = ["cli"]


@pytest.fixture
def frozen(
    glacier_server: Glacier, glacier_settings: TierSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Frozen:
    monkeypatch.setattr("vmcellar.crypto.passphrase.Argon2Cost", quick_cost)
    return make_frozen(glacier_server, glacier_settings, tmp_path)


def check_restores(cli: Cli, frozen: Frozen, folder: Path, *more: str) -> None:
    for point, disk in zip(frozen.points, frozen.disks, strict=True):
        result = cli("restore", point, "--to", folder / point, "--format", "raw", *more)
        assert result.code == 0, result.err
        assert (folder / point / "vda.raw").read_bytes() == disk


def test_a_plan_says_what_a_thaw_costs_and_takes(cli: Cli, frozen: Frozen) -> None:
    frozen.archive("GLACIER")
    sizes = [frozen.tier.size(key) for key in frozen.packs]
    plan = json.loads(cli("restore", frozen.points[1], "--plan", "--json").out)["thaw"]
    assert plan["archived"] == {"packs": len(sizes), "bytes": sum(sizes)}
    readable = [pack["size"] for pack in plan["packs"] if pack["state"] == "readable"]
    expected = offers(AWS_PRICES["GLACIER"], [*sizes, *readable], 3, frozen=sizes)
    assert [(offer["speed"], offer["hours"]) for offer in plan["offers"]] == [
        ("bulk", 12), ("standard", 5), ("expedited", 0.1)
    ]  # fmt: skip
    assert [offer["total"] for offer in plan["offers"]] == pytest.approx([offer.total for offer in expected])
    text = cli("restore", frozen.points[1], "--plan")
    assert text.code == 0
    assert f"{len(sizes)} packs" in text.out
    assert "expedited" in text.out
    assert "vmcellar thaw" in text.err
    assert frozen.requests() == []


def test_a_restore_refuses_before_it_writes(cli: Cli, frozen: Frozen, tmp_path: Path) -> None:
    frozen.archive("GLACIER")
    for more in ((), ("--best-effort",)):
        result = cli("restore", frozen.points[0], "--to", tmp_path / "out", *more)
        assert result.code == 1
        assert "must be thawed first" in result.err
        assert f"vmcellar thaw {frozen.points[0]}" in result.err
        assert not (tmp_path / "out").exists()
    assert frozen.requests() == []


def test_what_sleeps_is_not_served(cli: Cli, frozen: Frozen, tmp_path: Path) -> None:
    requires("nbdkit-python")
    frozen.archive("GLACIER")
    refused = cli("serve", frozen.points[0], "--socket", tmp_path / "nbd.sock")
    assert refused.code == 1
    assert "must be thawed first" in refused.err
    assert not (tmp_path / "nbd.sock").exists()


def test_no_vm_is_stopped_for_what_sleeps(frozen: Frozen) -> None:
    frozen.archive("GLACIER")
    job = object.__new__(InPlace)  # all that it asks before it looks at the VM
    job._repository, job._point = frozen.repository, frozen.repository.point(frozen.points[0])
    job.disks = {}
    with pytest.raises(ArchivedError, match="must be thawed first"):
        job.prepare(lambda: pytest.fail("the VM was backed up"))


def test_thaw_wait_and_restore(cli: Cli, frozen: Frozen, tmp_path: Path) -> None:
    frozen.archive("GLACIER")
    assert "nobody can be asked" in cli("thaw", frozen.points[0]).err
    assert frozen.requests() == []
    asked = cli("thaw", frozen.points[0], "--yes", "--days", "2")
    assert asked.code == 0, asked.err
    assert "expedited" in asked.out
    first = frozen.requests()
    assert {(request["tier"], request["days"]) for request in first} == {("Standard", 2)}
    assert len({request["key"] for request in first}) == len(first)
    (status,) = json.loads(cli("thaw", "--status", "--json").out)
    assert (status["state"], status["thawing"], status["packs"]) == ("thawing", len(first), len(first))
    assert cli("thaw", frozen.points[0], "--yes").code == 0
    assert len(frozen.requests()) == len(first)
    refused = cli("restore", frozen.points[0], "--to", tmp_path / "out")
    assert f"{len(first)} of them are being thawed" in refused.err
    frozen.server.advance(hours=5.1)
    (status,) = json.loads(cli("thaw", "--status", "--json").out)
    assert (status["state"], status["readable"]) == ("ready", len(first))
    assert "ready: restore it" in cli("thaw", "--status").out
    assert cli("thaw", frozen.points[1], "--yes").code == 0
    frozen.server.advance(hours=5.1)
    check_restores(cli, frozen, tmp_path / "restored")
    frozen.server.advance(days=4)
    states = {status["point"]: status["state"] for status in json.loads(cli("thaw", "--status", "--json").out)}
    assert states == dict.fromkeys(frozen.points, "incomplete")
    assert "repeat `vmcellar thaw" in cli("thaw", "--status").out


def test_what_can_be_read_needs_no_thaw(cli: Cli, frozen: Frozen, tmp_path: Path) -> None:
    frozen.archive("GLACIER_IR")
    assert json.loads(cli("restore", frozen.points[0], "--plan", "--json").out)["thaw"] is None
    assert "nothing to thaw" in cli("thaw", frozen.points[0], "--yes").err
    assert json.loads(cli("thaw", "--status", "--json").out) == []
    assert "no thaw was requested" in cli("thaw", "--status").err
    check_restores(cli, frozen, tmp_path / "restored")


def test_only_what_the_point_needs_and_sleeps_is_thawed(cli: Cli, frozen: Frozen) -> None:
    of_first, of_second = (frozen.needed(point) for point in frozen.points)
    others = sorted(set(of_second) - set(of_first))
    assert others
    frozen.archive("GLACIER", [of_first[0], *others])
    plan = json.loads(cli("thaw", frozen.points[0], "--yes", "--json").out)
    asked = {str(request["key"]).removeprefix("vm-backups/") for request in frozen.requests()}
    assert asked == {pack["key"] for pack in plan["packs"] if pack["state"] == "archived"} == {of_first[0]}


def test_a_speed_that_the_archive_lacks_is_refused_by_name(cli: Cli, frozen: Frozen, tmp_path: Path) -> None:
    frozen.archive("DEEP_ARCHIVE")
    config = tmp_path / "vmcellar.yaml"
    config.write_text(config.read_text().replace("prices: GLACIER", "prices: DEEP_ARCHIVE"))
    result = cli("thaw", frozen.points[0], "--speed", "expedited", "--yes")
    assert result.code == 2
    assert "offers bulk, standard" in result.err
    assert frozen.requests() == []
    assert cli("thaw", frozen.points[0], "--speed", "bulk", "--yes").code == 0
    (status,) = json.loads(cli("thaw", "--status", "--json").out)
    assert status["speed"] == "bulk"


def test_without_prices_a_thaw_says_so(cli: Cli, frozen: Frozen, tmp_path: Path) -> None:
    frozen.archive("GLACIER")
    config = tmp_path / "vmcellar.yaml"
    config.write_text(config.read_text().replace("prices: GLACIER", "prices: {gb_month: 1}"))
    assert "is not known: set `prices:`" in cli("restore", frozen.points[0], "--plan").out
    assert cli("thaw", frozen.points[0], "--yes").code == 0
    assert frozen.requests()


@pytest.mark.parametrize("best_effort", [False, True])
def test_a_thaw_that_ends_in_the_middle_is_no_loss(
    cli: Cli, frozen: Frozen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best_effort: bool
) -> None:
    frozen.archive("GLACIER")
    assert cli("thaw", frozen.points[0], "--yes", "--days", "1").code == 0
    frozen.server.advance(hours=6)
    target = RestoreTarget(tmp_path / "out", "raw", (), best_effort)
    point = frozen.repository.point(frozen.points[0])
    with monkeypatch.context() as once:
        after_the_check(once, lambda: frozen.server.advance(days=3))
        with pytest.raises(ArchivedError, match=r"data/.* lies in an archive class") as raised:
            restore_point(frozen.repository, point, target)
    assert "vmcellar thaw" in raised.value.hint
    assert not (tmp_path / "out").exists()
    assert cli("thaw", frozen.points[0], "--yes").code == 0
    frozen.server.advance(hours=6)
    result = cli("restore", frozen.points[0], "--to", tmp_path / "out", "--format", "raw")
    assert result.code == 0, result.err
    assert (tmp_path / "out" / "vda.raw").read_bytes() == frozen.disks[0]


def after_the_check(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]) -> None:
    """Something happens once the restore has checked that everything can be read."""

    def refuse_then(*arguments: Any) -> None:
        refuse_archived(*arguments)
        happens()

    monkeypatch.setattr("vmcellar.restore.restore.refuse_archived", refuse_then)


@pytest.mark.parametrize("arguments", ["", "x --status", "x --days 0", "x --fetch --yes"])
def test_bad_use(cli: Cli, arguments: str) -> None:
    assert cli("thaw", *arguments.split()).code == 2


@pytest.fixture
def tiered(
    glacier_server: Glacier, glacier_settings: TierSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Tiered:
    monkeypatch.setattr("vmcellar.crypto.passphrase.Argon2Cost", quick_cost)
    return make_tiered(glacier_server, glacier_settings, tmp_path)


def test_what_the_rules_moved_to_glacier_comes_back(cli: Cli, tiered: Tiered) -> None:
    """With a local hot tier and the archive behind it, and all by the commands."""
    cold = {tier["name"]: tier for tier in json.loads(cli("tiers", "--json").out)["tiers"]}["cold"]
    assert (cold["packs"], tiered.hot_packs) == (2, 0)
    plan = json.loads(cli("restore", tiered.point, "--plan", "--json").out)["thaw"]
    assert (plan["archived"]["packs"], {pack["tier"] for pack in plan["packs"]}) == (2, {"hot", "cold"})
    assert [offer["speed"] for offer in plan["offers"]] == ["bulk", "standard", "expedited"]
    assert "must be thawed first" in cli("restore", tiered.point, "--to", "out").err
    assert cli("thaw", tiered.point, "--yes", "--speed", "expedited").code == 0
    tiered.server.advance(hours=0.1)
    result = cli("restore", tiered.point, "--to", "out", "--format", "raw")
    assert result.code == 0, result.err
    assert (tiered.folder / "out" / "vda.raw").read_bytes() == tiered.disk
    (used,) = (tiered.folder / "repo" / "uses").iterdir()  # for placement by use
    assert used.name.startswith(tiered.point)


def test_what_was_fetched_outlives_its_thaw(cli: Cli, tiered: Tiered) -> None:
    early = cli("thaw", tiered.point, "--fetch")
    assert early.code == 0, early.err
    assert "2 packs cannot be read yet" in early.err
    assert cli("thaw", tiered.point, "--yes", "--speed", "expedited", "--days", "1").code == 0
    tiered.server.advance(hours=0.1)
    fetched = json.loads(cli("thaw", tiered.point, "--fetch", "--json").out)
    assert (fetched["copied"], fetched["there"], fetched["asleep"], tiered.hot_packs) == (2, 0, 0, 2)
    again = json.loads(cli("thaw", tiered.point, "--fetch", "--json").out)
    assert (again["copied"], again["there"], again["asleep"]) == (0, 2, 0)
    tiered.server.advance(days=3)
    assert json.loads(cli("restore", tiered.point, "--plan", "--json").out)["thaw"] is None
    result = cli("restore", tiered.point, "--to", "out", "--format", "raw")
    assert result.code == 0, result.err
    assert (tiered.folder / "out" / "vda.raw").read_bytes() == tiered.disk
    assert cli("tiers", "move").code == 0
    assert tiered.hot_packs == 0


def test_a_fetch_that_died_in_the_middle_goes_on(cli: Cli, tiered: Tiered, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("thaw", tiered.point, "--yes", "--speed", "expedited").code == 0
    tiered.server.advance(hours=0.1)
    adopt, adopted = LocalTier.adopt, []

    def dies(tier: LocalTier, path: Path, key: str) -> None:
        if key.startswith("data/"):
            adopted.append(key)
            if len(adopted) == 2:
                raise PowerCutError
        adopt(tier, path, key)

    with monkeypatch.context() as patch:
        patch.setattr(LocalTier, "adopt", dies)
        with pytest.raises(PowerCutError):
            cli("thaw", tiered.point, "--fetch")
    assert tiered.hot_packs == 1
    fetched = json.loads(cli("thaw", tiered.point, "--fetch", "--json").out)
    assert (fetched["copied"], fetched["there"], tiered.hot_packs) == (1, 1, 2)


def test_a_fetch_without_room_copies_nothing(cli: Cli, tiered: Tiered, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("thaw", tiered.point, "--yes", "--speed", "expedited").code == 0
    tiered.server.advance(hours=0.1)
    monkeypatch.setattr(LocalTier, "free_bytes", lambda _tier: MIB)
    refused = cli("thaw", tiered.point, "--fetch")
    assert refused.code == 1
    assert "has no room for 2 packs" in refused.err
    assert tiered.hot_packs == 0


def test_one_tier_has_nowhere_to_fetch_to(cli: Cli, frozen: Frozen) -> None:
    refused = cli("thaw", frozen.points[0], "--fetch")
    assert (refused.code, "one tier only" in refused.err) == (2, True)


def test_a_deep_check_does_not_take_sleep_for_damage(cli: Cli, frozen: Frozen) -> None:
    frozen.archive("GLACIER", frozen.packs[:1])
    report = json.loads(cli("verify", "--all", "--deep", "--json").out)
    assert (report["findings"], report["asleep"]) == ([], 1)
    checked = cli("verify", "--all", "--deep")
    assert checked.code == 0
    assert "1 packs lie in an archive class and were not read" in checked.out
    known = [chunk for point in frozen.points for chunk in chunks_of(frozen, point)]
    assert frozen.repository.index.known(known) == set(known)


def chunks_of(frozen: Frozen, point: str) -> list[bytes]:
    rows = next(frozen.repository.map(frozen.repository.point(point).disks[0]).rows(0, SIZE))
    return [row["chunk"].tobytes() for row in rows]


def test_a_lost_pack_is_still_lost_to_a_best_effort(cli: Cli, frozen: Frozen, tmp_path: Path) -> None:
    frozen.tier.delete(frozen.needed(frozen.points[0])[0])
    result = cli("restore", frozen.points[0], "--to", tmp_path / "out", "--best-effort", "--format", "raw", "--json")
    assert result.code == 1, result.err
    assert json.loads(result.out)["lost"]


@pytest.mark.parametrize("asked", [0, 1])
def test_a_request_that_died_in_the_middle_is_seen_and_gone_on_with(
    cli: Cli, frozen: Frozen, monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    frozen.archive("GLACIER")
    whole = S3Tier.thaw

    def dies(tier: S3Tier, keys: Iterable[str], days: int, speed: Speed) -> None:
        whole(tier, sorted(keys)[:asked], days, speed)
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(S3Tier, "thaw", dies)
        with pytest.raises(PowerCutError):
            cli("thaw", frozen.points[0], "--yes")
    assert len(frozen.requests()) == asked
    (status,) = json.loads(cli("thaw", "--status", "--json").out)
    assert (status["state"], status["thawing"]) == ("incomplete", asked)
    assert cli("thaw", frozen.points[0], "--yes").code == 0
    (status,) = json.loads(cli("thaw", "--status", "--json").out)
    assert (status["state"], status["thawing"]) == ("thawing", status["packs"])
    assert len(frozen.requests()) == status["packs"]


class PowerCutError(BaseException):
    """Nothing catches it."""


def test_a_record_is_replaced_by_one_of_the_same_packs_alone(frozen: Frozen, tmp_path: Path) -> None:
    records = ThawRecords(tmp_path / "records", frozen.repository)
    first = ThawRecord("point", "web", "bulk", 3, 1000.0, None, None, ("data/00/a",), 1)
    records.save(first)
    other = replace(first, requested=1001.0, keys=("data/00/b",))
    records.save(other)
    assert records.all() == [first, other]
    again = replace(first, requested=1002.0, keys=("data/00/a", "data/00/b"))
    records.save(again)
    assert (records.all(), records.of("point"), records.of("another")) == ([again], again, None)
    late = replace(first, point="another", requested=1002.0 + 30 * 86400)
    records.save(late)
    assert records.all() == [late]
