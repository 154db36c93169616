"""`vmcellar heat`: where each disk changed, on a real repository."""

from __future__ import annotations

import errno
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


@pytest.mark.usefixtures("cellar")
def test_a_plot_that_does_not_fit_leaves_the_one_that_was_there(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        write(path, data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    assert cli("heat", "web1", "--png", str(tmp_path)).code == 0
    before = (tmp_path / "web1-vda.png").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        done = cli("heat", "web1", "--png", str(tmp_path))
    assert (done.code, "make room there" in done.err) == (1, True)
    assert [path.read_bytes() for path in tmp_path.glob("*.png*")] == [before]


def test_a_strip_shows_the_most_of_each_stretch() -> None:
    share = np.zeros(128)
    share[[0, 3, 126]] = (1.0, 0.005, np.nan)
    assert strip(share) == "█░" + " " * 61 + "?"
