"""Put on PYTHONPATH by tests: every export of the process stops before it reads, until the test lets it go.

`$FLOW_TEST_HOLD` names a folder. Each export writes its process id into the file `held` there and waits until it is
asked to stop or the file `go` appears. A flow that `serve` runs is a process of Prefect's making, so a test cannot
reach into it in another way.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

FOLDER = os.environ.get("FLOW_TEST_HOLD", "")


def hold(folder: Path) -> None:
    """Wrap the stage."""
    from vmcellar.backup import stages  # noqa: PLC0415  (only in processes that are to be held)

    export = stages.export

    def held(engine: Any, run: str, target: str, segment: int, progress: Any, cancel: Any) -> Any:
        if not (folder / "go").exists():
            (folder / "held").write_text(str(os.getpid()))
        while not (cancel.cancelled or (folder / "go").exists()):
            time.sleep(0.02)
        return export(engine, run, target, segment, progress, cancel)

    stages.__dict__["export"] = held


if FOLDER:
    hold(Path(FOLDER))
