"""No run stays `Running` for ever: what the server is told of runs whose process is gone, and which are left alone.

With VMCELLAR_FAULTS=1; `test_record_files.py` needs no server.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Crashed, Running

from flows.parameters import FlowParameters
from tasks import runrecords
from tasks.runrecords import folder_of, living, recorded, settle
from tests.flows.conftest import CellarFactory
from tests.flows.seen import Seen
from vmcellar.errors import PermanentError

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.skipif(not os.environ.get("VMCELLAR_FAULTS"), reason="set VMCELLAR_FAULTS=1"),
]


@flow(name="kept")
@recorded
async def kept(request: FlowParameters) -> str:
    """Look at itself, then do as it is told by the name of its configuration."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    assert living(Path(request.config).parent / "state") == {str(context.flow_run.id)}
    if (Path(request.config).parent / "fail").exists():
        raise PermanentError("it was to fail")
    return str(context.flow_run.id)


def died(seen: Seen, state: Path, *, url: str = "", count: int = 0, **end: str) -> UUID:
    """A run that the server takes for running, and the record that its process left."""
    run = seen.client.create_flow_run(kept, parameters={"request": {}}, state=Running())
    folder_of(state).mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"id": str(run.id), "url": url or PREFECT_API_URL.value(), "count": run.run_count + count}
    (folder_of(state) / f"{run.id}.json").write_text(json.dumps({**record, **end}))
    return run.id


def test_each_run_gets_the_state_that_is_true(seen: Seen, tmp_path: Path) -> None:
    killed = died(seen, tmp_path)
    done = died(seen, tmp_path, end="completed", message="web1: point p1")
    red = died(seen, tmp_path, end="failed", message="web1: no space")
    assert {record.id for record in asyncio.run(settle(tmp_path))} == {str(killed), str(done), str(red)}
    assert seen.state(killed).name == "Crashed"
    assert seen.state(done).is_completed()
    assert "web1: point p1" in seen.state(done).message
    assert seen.state(red).name == "Failed"
    assert "web1: no space" in seen.state(red).message
    assert not list(folder_of(tmp_path).iterdir())
    assert asyncio.run(settle(tmp_path)) == []


def test_a_run_whose_work_was_over_when_its_worker_called_it_crashed_has_the_state_that_is_true(
    seen: Seen, tmp_path: Path
) -> None:
    """Its process could not tell the server, and ended with an error."""
    done = died(seen, tmp_path, end="completed", message="web1: point p1")
    red = died(seen, tmp_path, end="failed", message="web1: no space")
    killed = died(seen, tmp_path)
    for run in (done, red, killed):
        seen.client.set_flow_run_state(run, Crashed(message="exited with non-zero status code 1"), force=True)
    assert {record.id for record in asyncio.run(settle(tmp_path))} == {str(done), str(red)}
    assert [seen.state(run).name for run in (done, red, killed)] == ["Completed", "Failed", "Crashed"]
    assert "web1: point p1" in seen.state(done).message


def test_what_is_not_this_hosts_to_settle_is_left_alone(seen: Seen, tmp_path: Path) -> None:
    """A run of another server, one that was begun again, one that ended well, and one whose process lives."""
    of_another = died(seen, tmp_path, url="http://127.0.0.1:1/api")
    begun_again = died(seen, tmp_path, count=-1)
    ended = died(seen, tmp_path)
    seen.client.set_flow_run_state(ended, Completed(), force=True)
    alive = died(seen, tmp_path)
    record = runrecords._write(folder_of(tmp_path) / f"{alive}.json", runrecords.Record(str(alive), "", 0))
    try:
        assert asyncio.run(settle(tmp_path)) == []
        assert living(tmp_path) == {str(alive)}
    finally:
        os.close(record)
    assert [seen.state(run).name for run in (of_another, begun_again, alive)] == ["Running"] * 3
    assert seen.state(ended).name == "Completed"
    assert {path.stem for path in folder_of(tmp_path).iterdir()} == {str(of_another), str(alive)}
    assert living(tmp_path) == set()


def test_a_flow_run_is_recorded_while_its_process_lives(seen: Seen, make_cellar: CellarFactory) -> None:
    assert seen
    cellar = make_cellar()
    request = FlowParameters(config=str(cellar.file))
    run = asyncio.run(kept(request))
    (path,) = folder_of(cellar.config.state).iterdir()
    assert path.stem == run
    assert json.loads(path.read_text())["end"] == "completed"
    (cellar.base / "fail").touch()
    path.unlink()
    with pytest.raises(PermanentError, match="it was to fail"):
        asyncio.run(kept(request))
    (path,) = folder_of(cellar.config.state).iterdir()
    assert json.loads(path.read_text())["end"] == "failed"
