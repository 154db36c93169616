"""`vmcellar advise --apply` and `--undo`: what the engine does, in words, and the Prefect server told."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from vmcellar.cli.output import note
from vmcellar.errors import UsageError

if TYPE_CHECKING:
    from vmcellar.analysis.advise import Advice
    from vmcellar.catalog.catalog import Catalog
    from vmcellar.config.model import Config

BY = "vmcellar advise"


def apply(config: Config, catalog: Catalog, advice: Advice, where: str) -> None:
    """Make the advice the schedules of this host's jobs; note it in the catalog; tell the Prefect server, if any.

    UsageError when there is nothing to apply. Windows hold as before, and `--undo` takes it back.
    """
    from vmcellar.analysis import adapting

    done = adapting.apply(config, catalog, advice, BY)
    if done.left_out:
        note(f"left as they are, as not exactly one job with a schedule has them: {', '.join(done.left_out)}")
    if not done.changed:
        raise UsageError("nothing to apply: every VM stays as it is", hint="the table says why")
    note(f"applied to {len(done.changed)} VMs; `vmcellar advise --undo` takes it back")
    _tell(config, where)


def undo(config: Config, catalog: Catalog, where: str) -> None:
    """Bring back the schedules before the last `apply`."""
    from vmcellar.analysis import adapting

    adapting.undo(config, catalog, BY)
    note("the schedules before the last advice hold again")
    _tell(config, where)


def _tell(config: Config, where: str) -> None:
    from tasks.server import answers

    url = os.environ.get("PREFECT_API_URL", "")
    if not answers(url):
        note("no Prefect server answers (PREFECT_API_URL): `vmcellar up`, `vmcellar deploy`, or the flow "
             "reconcile-schedules takes it over")  # fmt: skip
        return
    from deployments import registration
    from tasks import timetable as server

    async def write() -> int:
        todo = await registration.schedule_changes(config, where)
        await server.apply(todo)
        return len(todo)

    note(f"{asyncio.run(write())} schedules were changed on the server at {url}")
