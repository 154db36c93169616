"""release: end the backup job, so that the guest runs as if there were no backup, long before packs are made."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vmcellar.backup.model import ReleaseResult
from vmcellar.backup.runs import RELEASED

if TYPE_CHECKING:
    from vmcellar.engine import Engine


def release(engine: Engine, run_id: str) -> ReleaseResult:
    """End the run's backup job; scratch files and socket go with it. Harmless when it has ended.

    `held` is the time from the job's begin to its end in seconds; more than that after a process died between the two.
    Never removes what has landed.
    """
    run = engine.run(run_id)
    done = run.directory.load(RELEASED, ReleaseResult)
    if done is not None:
        return done
    if run.held:  # else an earlier process ended the job, and died before it could note that
        run.capture.end()
    result = ReleaseResult(held=time.time() - run.record.started)
    run.directory.save(RELEASED, result)
    return result
