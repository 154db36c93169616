"""The run directory: in which order it goes; under threads, as CPython 3.11 counts the depth of its parser for all."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from vmcellar.backup.rundir import COMMITTED, REQUEST_FILE, RunDirectory


@pytest.fixture
def busy_interpreter() -> Iterator[None]:
    """Collect garbage at almost every allocation and run Python code then, so that threads take turns inside numpy."""

    def callback(_phase: str, _info: dict[str, int]) -> None:
        sum(range(50))

    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.callbacks.append(callback)
    gc.set_threshold(5)
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*thresholds)
    gc.callbacks.remove(callback)


@pytest.mark.usefixtures("busy_interpreter")
def test_arrays_are_read_by_several_threads_at_once(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    rows = np.zeros(3, [("offset", "<u8"), ("chunk", "u1", (32,))])
    directory.save_arrays("a.npz", {"rows": rows})

    def read(depth: int) -> bool:
        if depth:
            return read(depth - 1)
        return all(np.array_equal(directory.load_arrays("a.npz")["rows"], rows) for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, [0, 5, 10, 15]))


def test_what_says_that_a_point_stays_goes_after_what_says_whose_run_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in between, it is nobody's folder, not one whose point is in doubt."""
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    for name in (REQUEST_FILE, COMMITTED, "vda.0000.export.json"):
        directory.save(name, "x")
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    directory.remove()
    assert [path.name for path in directory.path.iterdir()] == [COMMITTED]
