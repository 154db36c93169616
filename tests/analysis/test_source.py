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


def test_an_incident_of_a_vm_whose_points_are_gone_has_no_heat_map_and_ends_no_notebook(tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("correct horse\n")
    config = tmp_path / "vmcellar.yaml"
    config.write_text("tiers: {hot: repo}\nkey: {file: pass}\nstate: state\n")
    repository = Repository.init(load_config(config))
    vm, _, frame = attacked_history()
    later = frame["started"] + (pd.Timestamp.now("UTC") - frame["started"].max())
    note_runs(Catalog.of(load_config(config), repository.id), frame.assign(started=later))
    repository.close()
    source = load(config)
    assert vm in source.frame["vm"].unique()
    found = source.heat_map(vm, "vda", source.now.timestamp())
    assert found is None
    assert png(plots.heat(found)).startswith(b"\x89PNG")
