"""Serve all flows on this host: `python -m deployments.serve`. Needs PREFECT_API_URL and a running server.

With a configuration (that of $VMCELLAR_CONFIG, or the usual place) its jobs and their schedules as well. Deployments
stay active when it stops (`pause_on_shutdown=False`), and it stops cleanly on SIGTERM and SIGINT: runs are cancelled,
their VMs let go. When it begins, the server is told of this host's runs whose process is gone, as after a power cut.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import suppress

from prefect.exceptions import TerminationSignal
from prefect.runner import Runner

from deployments import registration
from tasks import runrecords
from tasks.server import answers
from tasks.timetable import SERVED
from vmcellar.config import find_config, load_config
from vmcellar.config.load import ENVIRONMENT
from vmcellar.config.model import Config
from vmcellar.errors import UsageError, VmcellarError

START_SECONDS = 120
POLL_SECONDS = 0.5


def main() -> None:
    """Serve until stopped."""
    _wait_for_server(os.environ.get("PREFECT_API_URL", ""))
    try:
        config = _config()
    except VmcellarError as error:
        sys.stderr.write(f"error: {error.message}\n  {error.hint or ''}\n")
        sys.exit(error.exit_code)
    with suppress(KeyboardInterrupt, TerminationSignal):
        asyncio.run(_serve(config))


async def _serve(config: Config | None) -> None:
    """As Prefect's `serve`, which however would unpause what somebody paused in the UI."""
    runner = Runner(pause_on_shutdown=False)
    await registration.apply(await registration.plan(config, SERVED), config, runner.aadd_deployment)
    if config is not None:
        await runrecords.settle(config.state)
    await runner.start()


def _wait_for_server(url: str) -> None:
    """At boot the server begins with us. One that does not answer in time is for Prefect to complain of."""
    end = time.monotonic() + START_SECONDS
    while url and not answers(url) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)


def _config() -> Config | None:
    """None, and said so, where there is no file at all; UsageError where one was named that is not there."""
    try:
        path = find_config()
    except UsageError as error:
        if os.environ.get(ENVIRONMENT):
            raise
        sys.stderr.write(f"note: {error.message}: the flows' forms are served, and no jobs\n")
        return None
    return load_config(path)


if __name__ == "__main__":
    main()
