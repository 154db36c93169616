"""Every notebook runs from top to bottom on a host without a catalog, and shows its plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PLOTS = {"capacity": 3, "change_rates": 5, "incident_review": 2, "rpo_rto": 2, "what_if": 2}


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]  # nbformat has none


def test_they_are_all_known() -> None:
    assert {book.stem for book in BOOKS} == set(PLOTS)


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_they_keep_no_output_and_no_logic_of_their_own(path: Path) -> None:
    book = read(path)
    nbformat.validate(book)
    for cell in book.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
            assert not any(word in cell.source for word in ("def ", "lambda", "pandas", "numpy", "while "))
            imported = [line.split()[1] for line in cell.source.splitlines() if line.startswith(("from ", "import "))]
            assert all(name.startswith(("vmcellar.analysis", "vmcellar.config")) for name in imported)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the notebook's machinery, not of ours
@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_they_run_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("VMCELLAR_CONFIG", str(tmp_path / "none.yaml"))
    book = read(path)
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, timeout=120, kernel_name="python3", resources=where).execute()
    outputs: list[Any] = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert "a made-up history" in str(outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == PLOTS[path.stem]
    assert [output for output in outputs if output.output_type in ("stream", "error")] == []
