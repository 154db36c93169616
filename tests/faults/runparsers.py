"""The parsers of what a run leaves for the next process: a damaged one must not stop every later backup of its VM."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.faults.mutate import mutate_text
from tests.faults.parser import Parser
from vmcellar.backup.model import CompressResult, ExportResult, PackHandle, RunHandle, SegmentHandle, to_json
from vmcellar.backup.rundir import RunDirectory
from vmcellar.backup.runs import RunRecord


def run_parsers(folder: Path) -> list[Parser]:
    """Arrays and records, read from a run's directory in `folder`."""
    directory = RunDirectory(folder / "run")
    arrays = {"rows": np.arange(50), "table": np.zeros(3, [("a", "<u8"), ("b", "u1", (32,))])}

    def load_arrays(data: bytes) -> None:
        _write(directory, "a.npz", data)
        directory.load_arrays("a.npz")

    def load_records(data: bytes) -> None:
        _write(directory, "a.json", data)
        for kind in (RunRecord, ExportResult, CompressResult, RunHandle):
            directory.load("a.json", kind)

    pack = PackHandle("0" * 32, "data/00/0", "/staging/x", 4096)
    records = (
        to_json(CompressResult("vda", 0, (pack,), 10, 5, 0.5)),
        to_json(RunHandle("r", "web", "full", "c", False, (SegmentHandle("vda", 0, 1, 2),))),
    )
    return [
        Parser("a run's arrays", (_bytes_of(folder, arrays),), load_arrays, weight=0.2),
        Parser("a run's records", records, load_records, mutate_text, 0.2),
    ]


def _bytes_of(folder: Path, arrays: dict[str, np.ndarray]) -> bytes:
    folder.mkdir(exist_ok=True)
    directory = RunDirectory(folder / "seed")
    directory.create()
    directory.save_arrays("a.npz", arrays)
    data = (directory.path / "a.npz").read_bytes()
    directory.remove()
    return data


def _write(directory: RunDirectory, name: str, data: bytes) -> None:
    directory.create()
    (directory.path / name).write_bytes(data)
