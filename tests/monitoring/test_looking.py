"""A look at the fleet: what is told of the repository itself, also while it is away, and to whom."""

from __future__ import annotations

import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

import tasks.watch
from tasks.watch import look, notify, ping
from tests.cli.conftest import quick_cost
from tests.repository.writing import back_up
from vmcellar.catalog import conditions
from vmcellar.catalog.catalog import Catalog
from vmcellar.catalog.models import Evidence, Run
from vmcellar.catalog.notices import Notices
from vmcellar.config import load_config
from vmcellar.repository.repository import Repository
from vmcellar.repository.scrub import verify_all

MIB = 1 << 20


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a point, and a cold tier; nobody is to be told yet."""
    monkeypatch.setattr("vmcellar.crypto.passphrase.Argon2Cost", quick_cost)
    monkeypatch.setattr(tasks.watch, "emit_event", lambda **_: None)
    monkeypatch.setattr(conditions, "FREE_LEAST", 0)
    (tmp_path / "pass").write_text("correct horse\n")
    file = tmp_path / "vmcellar.yaml"
    write(file)
    repository = Repository.init(load_config(file))
    with ThreadPoolExecutor(2) as pool:
        back_up(repository, pool, [(0, random.Random(1).randbytes(MIB))], MIB)
    repository.close()
    return file


def write(file: Path, **more: Any) -> None:
    tiers = {"hot": "hot", "cold": "cold"}
    file.write_text(yaml.safe_dump({"tiers": tiers, "key": {"file": "pass"}, "state": "state", **more}))


def keys(config: Path) -> list[str]:
    return [each.key for each in look.fn(str(config))]


def test_room_is_asked_of_the_tiers_themselves(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keys(config) == []
    monkeypatch.setattr(conditions, "FREE_LEAST", 1 << 62)
    assert keys(config) == ["tier cold full", "tier hot full"], "nobody typed `vmcellar capacity`"


def test_a_repository_that_is_away_is_told_and_ends_nothing(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "FREE_LEAST", 1 << 62)
    keys(config)
    hot, elsewhere = config.parent / "hot", config.parent / "elsewhere"
    hot.rename(elsewhere)
    assert keys(config) == ["tier cold full", "tier hot away", "tier hot full"], "what cannot be seen is not over"
    elsewhere.rename(hot)
    monkeypatch.setattr(conditions, "FREE_LEAST", 0)
    assert keys(config) == []


def test_a_tier_behind_hot_that_is_away_is_told(config: Path) -> None:
    shutil.rmtree(config.parent / "cold")
    assert keys(config) == ["tier cold away"]


def test_damage_is_told_until_it_is_mended(config: Path) -> None:
    pack = max((config.parent / "hot" / "data").glob("*/*"), key=lambda path: path.stat().st_size)
    whole = pack.read_bytes()
    pack.chmod(0o600)
    pack.write_bytes(whole[:200] + bytes(64) + whole[264:])
    repository = Repository.open(load_config(config))
    assert not verify_all(repository, deep=True).ok
    assert keys(config) == ["repository damaged"]
    repository.close()
    pack.write_bytes(whole)
    assert keys(config) == [], "the note stands, and what it is about reads again"


def test_evidence_against_a_point_that_was_pruned_is_over(config: Path) -> None:
    repository = Repository.open(load_config(config))
    (point,) = repository.points()
    bad: dict[str, Any] = {"repository": repository.id.hex(), "kind": "drill", "time": point.time, "ok": False}
    catalog = Catalog.of(load_config(config), repository.id)
    catalog.add([Evidence(id="a", vm=point.vm, point_id=point.id, **bad)])
    catalog.add([Evidence(id="b", vm="gone", point_id="20200101T000000Z-00000000", **bad)])
    repository.close()
    assert keys(config) == [f"{point.vm}: drill failed"]


def test_an_address_that_is_none_keeps_its_notices_and_holds_nobody_up(config: Path) -> None:
    for name, address in {"typo": "nosuch://there", "good": "json://127.0.0.1:1"}.items():
        (config.parent / name).write_text(address)
    write(config, notify=[{"file": name} for name in ("missing", "typo", "good")], ping={"file": "good"})
    Catalog.of(load_config(config), bytes(16)).add(
        [Run(id="a", repository="ab" * 16, vm="web", started=1.0, outcome="failed")]
    )
    assert keys(config) == ["web: no point", "web: backup failed"]
    assert notify.fn(str(config)) == (0, 6), "none was taken, and none is lost"
    assert ping.fn(str(config)) is False
    assert Notices(config.parent / "state").send(lambda *_: True) == (6, 0)
