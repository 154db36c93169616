"""What becomes of a proof or a drill whose point goes away, or whose tier does: it is told of, and ends no other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.verify import _raise_worst
from tasks import retrying, verify
from tasks.verify import drill, prove
from tests.backup.world import make_engine
from tests.cli.conftest import quick_cost
from vmcellar.backup import pipeline
from vmcellar.backup.model import BackupRequest
from vmcellar.engine import Engine
from vmcellar.errors import CancelledError, PermanentError, TransientError, VmcellarError
from vmcellar.quality import proving

GONE = "20200101T000000Z-00000000"


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr("vmcellar.crypto.passphrase.Argon2Cost", quick_cost)
    made = make_engine(tmp_path)
    monkeypatch.setattr(verify, "engine_of", lambda _config: made)
    pipeline.run(made, BackupRequest("vm"))
    return made


def raising(monkeypatch: pytest.MonkeyPatch, error: VmcellarError) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(proving, "prove", fails)


def tried(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    context = SimpleNamespace(task_run=SimpleNamespace(run_count=count))
    monkeypatch.setattr(retrying, "TaskRunContext", SimpleNamespace(get=lambda: context))


def test_a_point_that_was_dropped_meanwhile_is_passed_over(engine: Engine) -> None:
    assert engine.repository.points()
    outcome = prove.fn("", GONE, against_source=False)
    assert (outcome.point, outcome.record, outcome.gone) == (GONE, None, True)
    _raise_worst([outcome])


def test_a_drill_of_a_vm_without_points_is_an_outcome(engine: Engine) -> None:
    """That an anomaly asked for it must not end each analysis to come."""
    assert engine.repository.points()
    outcome = drill.fn("", "nobody@latest", keep=False)
    assert "nobody has no restore point" in outcome.problem
    with pytest.raises(PermanentError, match="1 of 1 could not be proven"):
        _raise_worst([outcome])


def test_what_may_pass_is_tried_again_and_then_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    (point,) = engine.repository.points()
    raising(monkeypatch, TransientError("the tier is away"))
    tried(monkeypatch, 4)
    with pytest.raises(TransientError):
        prove.fn("", point.id, against_source=False)
    tried(monkeypatch, 5)
    outcome = prove.fn("", point.id, against_source=False)
    assert (outcome.vm, outcome.problem, outcome.gone) == ("vm", "the tier is away", False)


def test_a_stop_is_a_stop(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    (point,) = engine.repository.points()
    raising(monkeypatch, CancelledError("stopped on request"))
    with pytest.raises(CancelledError):
        prove.fn("", point.id, against_source=False)
