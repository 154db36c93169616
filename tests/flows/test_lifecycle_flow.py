"""`rebalance_tiers` against a real server: what it moves, what it shows, and what turns it red."""

from __future__ import annotations

import asyncio
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flows.lifecycle import rebalance_tiers
from flows.parameters import RebalanceTiers
from tests.cli.conftest import quick_cost
from tests.flows.seen import Seen
from tests.repository.writing import back_up, read_disk
from vmcellar.config import load_config
from vmcellar.engine import open_engine
from vmcellar.errors import IntegrityError
from vmcellar.repository.repository import Repository

pytestmark = pytest.mark.prefect
MIB = 1 << 20
POINTS_TIME = 1_800_000_000


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a point that is forty days old."""
    monkeypatch.setattr("vmcellar.crypto.passphrase.Argon2Cost", quick_cost)
    (tmp_path / "pass").write_text("correct horse\n")
    file = tmp_path / "vmcellar.yaml"
    file.write_text(
        "tiers: {hot: hot, cold: cold}\nplacement: {hot: 7d, cold: rest}\nkey: {file: pass}\nstate: state\n"
    )
    repository = Repository.init(load_config(file))
    with ThreadPoolExecutor(2) as pool:
        back_up(repository, pool, [(0, random.Random(1).randbytes(MIB))], MIB)
    repository.close()
    open_engine(file).repository.clock = lambda: POINTS_TIME + 40 * 86400.0
    return file


def run(config: Path, **more: Any) -> object:
    return asyncio.run(rebalance_tiers(RebalanceTiers(config=str(config), **more)))


def test_packs_move_and_the_tables_say_where(seen: Seen, config: Path) -> None:
    run(config, dry_run=True)
    assert not list((config.parent / "cold").glob("data/*/*"))
    run(config)
    assert not list((config.parent / "hot").glob("data/*/*"))
    packs = [f"data/{path.parent.name}/{path.name}" for path in (config.parent / "cold").glob("data/*/*")]
    assert packs
    shown = {key: str(made.data) for key, made in seen.artifacts(seen.flow_run("rebalance tiers")).items()}
    assert all(pack in shown["moves-between-tiers"] for pack in packs)
    assert "cold" in shown["tiers"]
    repository = Repository.open(load_config(config))
    (point,) = repository.points()
    assert read_disk(repository, point) == random.Random(1).randbytes(MIB)
    repository.close()


def test_a_lost_pack_turns_it_red(seen: Seen, config: Path) -> None:
    run(config)
    shutil.rmtree(config.parent / "cold" / "data")
    with pytest.raises(IntegrityError, match=r"\d packs that restore points need are lost"):
        run(config)
    state = seen.flow_run("rebalance tiers").state
    assert state is not None
    assert state.is_failed()
