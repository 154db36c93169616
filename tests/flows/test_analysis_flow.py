"""`analyse_history` against a real server: what it publishes, on a repository with a few points."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.analysis import analyse_history
from flows.parameters import AnalyseHistory
from tests.flows.seen import Seen
from tests.repository.writing import back_up
from vmcellar.config import load_config
from vmcellar.engine import open_engine
from vmcellar.repository.repository import Repository

pytestmark = pytest.mark.prefect


def test_it_publishes_quality_tables_and_plots(seen: Seen, tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("correct horse\n")
    config = tmp_path / "vmcellar.yaml"
    config.write_text("tiers: {hot: repo}\nkey: {file: pass}\nstate: state\n")
    repository = Repository.init(load_config(config))
    with ThreadPoolExecutor(2) as pool:
        back_up(repository, pool, [(0, b"1" * (1 << 20))], 8 << 20, vm="web1")
    repository.close()
    told = asyncio.run(analyse_history(AnalyseHistory(config=str(config))))
    open_engine(config).repository.close()
    assert (told["runs"], told["rows"]) == (1, 1), "the catalog was filled from the repository"
    found = seen.artifacts(seen.flow_run("analyse history"))
    assert {"history", "history-quality", "plot-tier-hot", "plot-change-calendar"} <= found.keys()
    assert "## Capacity" in str(found["history"].data)
    assert str(found["plot-tier-hot"].data).startswith("data:image/png;base64,")
    assert found["plot-tier-hot"].type == "image"
