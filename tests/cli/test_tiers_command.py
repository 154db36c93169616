"""`tiers`, `tiers move`, `tiers add` and `tiers promote`, on a real repository with three directories."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cellar, Cli
from vmcellar.analysis.capacity import TierUse, capacity
from vmcellar.analysis.grid import seconds_of
from vmcellar.analysis.sample import Settings, generate
from vmcellar.cli.checks.storage import check_storage
from vmcellar.config import load_config
from vmcellar.errors import PermanentError
from vmcellar.repository.repository import Repository
from vmcellar.tiers.local import LocalTier

POINTS_TIME = 1_800_000_000
TIERS = """
tiers: {hot: repo, warm: warm, cold: {storage: cold, prices: {gb_month: 1.0}}}
placement: {hot: 1d, warm: 2d, cold: rest}
key: {file: pass}
state: state
"""


@pytest.fixture
def tiered(cellar: Cellar, cli: Cli) -> Cellar:
    """The repository with two tiers more, which have no packs yet."""
    cellar.config.write_text(TIERS)
    for name in ("warm", "cold"):
        assert cli("tiers", "add", name).code == 0
    return cellar


def later(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    """Commands run so many days after the points were made."""
    real = Repository.__init__
    now = POINTS_TIME + days * 86400

    def made(self: Repository, *arguments: Any, **named: Any) -> None:
        real(self, *arguments, **named)
        self.clock = lambda: now

    monkeypatch.setattr(Repository, "__init__", made)


def packs(folder: Path) -> int:
    return sum(path.is_file() for path in (folder / "data").rglob("*"))


def test_a_place_is_added_once(cli: Cli, cellar: Cellar) -> None:
    cellar.config.write_text(TIERS)
    assert [each.check for each in check_storage(load_config(cellar.config)) if each.status == "failed"] == [
        "tier warm", "tier cold",
    ]  # fmt: skip
    shown = cli("tiers")
    assert shown.code == 1
    assert "warm is away" in shown.out
    assert "vmcellar tiers add warm" in shown.out
    moved = cli("tiers", "move")
    assert moved.code == 1
    assert "tiers add warm" in moved.err
    assert "is a tier of this repository;" in cli("tiers", "add", "warm").err
    assert "already" in cli("tiers", "add", "warm").err
    assert cli("tiers", "add", "lukewarm").code == 2
    assert cli("tiers", "add", "cold").code == 0
    assert "failed" not in {each.status for each in check_storage(load_config(cellar.config))}


def test_what_cools_moves_and_every_point_restores(cli: Cli, tiered: Cellar, monkeypatch: pytest.MonkeyPatch) -> None:
    all_packs = packs(tiered.folder / "repo")
    document = json.loads(cli("tiers", "--json").out)
    assert [(tier["name"], tier["packs"]) for tier in document["tiers"]] == [
        ("hot", all_packs),
        ("warm", 0),
        ("cold", 0),
    ]
    assert "all" in cli("tiers", "move").out
    assert (tiered.folder / "cold" / "points").is_dir(), "the mirror is there before any pack is"
    later(monkeypatch, 1.5)
    told = cli("tiers", "move", "--dry-run")
    assert f"hot to warm: {all_packs} packs" in told.out
    assert packs(tiered.folder / "warm") == 0
    assert cli("tiers", "move", "--limit", "1GiB").code == 0
    assert (packs(tiered.folder / "repo"), packs(tiered.folder / "warm")) == (0, all_packs)
    later(monkeypatch, 3)
    report = json.loads(cli("tiers", "move", "--json").out)
    assert (len(report["moves"]), report["ok"]) == (all_packs, True)
    assert packs(tiered.folder / "cold") == all_packs
    table = cli("tiers").out
    assert "3.0 d" in table
    cold = json.loads(cli("tiers", "--json").out)["tiers"][2]
    assert cold["cost_month"] == pytest.approx(cold["bytes"] / (1 << 30))
    for point, image in tiered.disks.items():
        assert cli("restore", point, "--to", tiered.folder / point, "--format", "raw").code == 0
        assert (tiered.folder / point / "vda.raw").read_bytes() == image
    assert cli("verify", "--all", "--deep").code == 0


def test_days_to_full_are_told_beside_the_room_that_is_left(
    cli: Cli, tiered: Cellar, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = json.loads(cli("tiers", "--json").out)["tiers"]
    assert [tier["full"] for tier in first] == [None] * 3, "nothing is known before there is a history"
    files = [path for path in (tiered.folder / "repo").rglob("*") if path.is_file()]
    assert first[0]["packs"] < first[0]["objects"] <= len(files)
    assert cli("catalog", "rebuild").code == 0
    short = json.loads(cli("tiers", "--json").out)["tiers"][0]["full"]
    assert (short["known"], short["days"]) == (False, None)
    assert "are needed" in short["reason"]
    frame = generate(Settings(seed=3, vms=6, days=90)).frame
    monkeypatch.setattr("vmcellar.analysis.capacity.recent", lambda *_: frame)
    now = float(seconds_of(frame["started"]).max())
    later(monkeypatch, (now - POINTS_TIME) / 86400)
    (plain,) = capacity(frame, [TierUse("hot", 0, 1 << 60)], now)
    assert plain.per_day is not None
    room = int(30 * plain.per_day)
    monkeypatch.setattr(LocalTier, "free_bytes", lambda _: room)
    full = json.loads(cli("tiers", "--json").out)["tiers"][0]["full"]
    assert full["days"] == pytest.approx(30, abs=6)
    assert full["earliest"] <= full["days"]
    assert f" {full['days']:.0f} d " in cli("tiers").out
    monkeypatch.setattr("vmcellar.analysis.capacity.recent", broken_catalog)
    told = cli("tiers")
    assert told.code == 0
    assert "when tiers will be full is not known: catalog is broken" in told.err


def broken_catalog(*_: object) -> None:
    raise PermanentError("catalog is broken")


def test_bad_use(cli: Cli, tiered: Cellar) -> None:
    assert cli("tiers", "move", "--limit", "fast").code == 2
    tiered.config.write_text(TIERS.replace("placement", "#"))
    assert "placement is missing" in cli("tiers", "move").err
    tiered.config.write_text(TIERS.replace(" warm: warm,", ""))
    assert "tiers.warm is missing" in cli("tiers").err


def test_without_its_hot_tier_a_repository_restores_from_a_mirror(
    cli: Cli, tiered: Cellar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/tiers.md says: all packs have cooled to cold, warm mirrors the rest, and hot is lost."""
    later(monkeypatch, 3)
    assert cli("tiers", "move").code == 0
    shutil.rmtree(tiered.folder / "repo")
    assert cli("list").code == 1
    tiered.config.write_text(TIERS.replace("hot: repo, warm: warm,", "hot: warm,").replace("warm: 2d,", ""))
    for point, image in tiered.disks.items():
        assert cli("restore", point, "--to", tiered.folder / point, "--format", "raw").code == 0
        assert (tiered.folder / point / "vda.raw").read_bytes() == image
    assert cli("verify", "--all", "--deep").code == 0
    refused = cli("pin", tiered.first.id)
    assert "tiers promote" in refused.err
    assert cli("tiers", "promote", "--yes").code == 0
    assert cli("pin", tiered.first.id).code == 0
    assert cli("tiers", "promote", "--yes").code == 1


def test_a_lost_tier_is_told_point_by_point(cli: Cli, tiered: Cellar, monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch, 3)
    assert cli("tiers", "move").code == 0
    shutil.rmtree(tiered.folder / "cold")
    assert cli("tiers").code == 1
    verified = cli("verify", "--all")
    assert verified.code == 1
    assert tiered.first.id in verified.out
    (tiered.folder / "cold").mkdir()
    assert cli("tiers", "add", "cold").code == 0
    moved = cli("tiers", "move")
    assert moved.code == 1
    assert "LOST" in moved.out


def test_a_damaged_hot_tier_is_mended_from_another(cli: Cli, tiered: Cellar, monkeypatch: pytest.MonkeyPatch) -> None:
    tiered.config.write_text(TIERS.replace("cold: rest", "cold: rest, copies: 2"))
    later(monkeypatch, 0.5)
    assert cli("tiers", "move").code == 0
    hot = tiered.folder / "repo"
    for number, (folder, what) in enumerate((("data", "cut"), ("data", "gone"), ("meta", "gone"), ("points", "flip"))):
        path = sorted(path for path in (hot / folder).rglob("*") if path.is_file())[number % 2]
        path.chmod(0o600)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        if what == "gone":
            path.unlink()
        else:
            path.write_bytes(data if what == "flip" else data[: len(data) // 2])
    assert cli("verify", "--all", "--deep").code == 1
    mended = cli("verify", "--all", "--deep", "--repair", "--from", "warm")
    assert mended.code == 0, mended.out + mended.err
    assert cli("tiers", "move").code == 0
    assert packs(hot) == packs(tiered.folder / "warm")
    assert cli("verify", "--all", "--deep").code == 0
    for point, image in tiered.disks.items():
        assert cli("restore", point, "--to", tiered.folder / point, "--format", "raw").code == 0
        assert (tiered.folder / point / "vda.raw").read_bytes() == image
