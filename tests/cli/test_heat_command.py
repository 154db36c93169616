"""`vmcellar heat`: where each disk changed, on a real repository."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import CHUNK, Cellar, Cli
from vmcellar.cli.render.heat import strip


def test_it_shows_where_a_disk_changed_and_draws_it(cli: Cli, cellar: Cellar, tmp_path: Path) -> None:
    done = cli("heat", "web1", "--png", str(tmp_path))
    assert done.code == 0, done.err
    assert cellar.second.id in done.out
    assert (tmp_path / "web1-vda.png").read_bytes().startswith(b"\x89PNG")
    (found,) = json.loads(cli("heat", "web1", "vda", "--json").out)
    (row,) = found["points"]
    changed = np.array(row["changed"]) * found["cell"]
    cells = CHUNK // found["cell"]
    assert row["point"] == cellar.second.id
    assert changed.sum() == 2 * CHUNK, "the first chunk became zero, the third was written"
    assert (changed[:cells].sum(), changed[2 * cells : 3 * cells].sum()) == (CHUNK, CHUNK)
    assert found["damaged"] == {}


@pytest.mark.usefixtures("cellar")
def test_it_says_what_is_not_there(cli: Cli, tmp_path: Path) -> None:
    assert "web9 has no restore point" in cli("heat", "web9").err
    assert "0 of its points have disk vdz" in cli("heat", "web1", "vdz").err
    assert "1 of its points have disk vda" in cli("heat", "db1").err
    lost = cli("heat", "web1", "--png", str(tmp_path / "none"))
    assert (lost.code, "name a folder that exists" in lost.err) == (1, True)


def test_a_strip_shows_the_most_of_each_stretch() -> None:
    share = np.zeros(128)
    share[[0, 3, 126]] = (1.0, 0.005, np.nan)
    assert strip(share) == "█░" + " " * 61 + "?"
