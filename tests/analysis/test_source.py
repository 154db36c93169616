"""What notebooks are given of a real catalog."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lab.history import note_runs
from tests.analysis.attacked import attacked_history
from vmcellar.analysis import plots
from vmcellar.analysis.figures import png
from vmcellar.analysis.source import load
from vmcellar.catalog.catalog import Catalog
from vmcellar.config import load_config
from vmcellar.repository.repository import Repository


def test_it_is_that_of_the_newest_repository_and_an_incident_whose_points_are_gone_has_no_heat_map(
    tmp_path: Path,
) -> None:
    (tmp_path / "pass").write_text("correct horse\n")
    config = tmp_path / "vmcellar.yaml"
    config.write_text("tiers: {hot: repo}\nkey: {file: pass}\nstate: state\n")
    repository = Repository.init(load_config(config))
    vm, _, frame = attacked_history()
    later = frame["started"] + (pd.Timestamp.now("UTC") - frame["started"].max())
    note_runs(Catalog.of(load_config(config), repository.id), frame[-1000:].assign(started=later))
    before = frame.assign(started=later - pd.Timedelta(days=1), run_id="of-another-" + frame["run_id"].astype(str))
    note_runs(Catalog.of(load_config(config), b"o" * 16), before)
    repository.close()
    source = load(config)
    assert vm in source.frame["vm"].unique()
    assert len(source.frame) < 1100, "of the repository that is in use"
    found = source.heat_map(vm, "vda", source.now.timestamp())
    assert found is None
    assert png(plots.heat(found)).startswith(b"\x89PNG")
