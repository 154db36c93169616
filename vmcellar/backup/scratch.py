"""Scratch space of a held VM: when it fills, the guest's own writes fail, so a backup gives up before (pitfall 11)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vmcellar.errors import PermanentError, VmcellarError
from vmcellar.progress import CancelToken
from vmcellar.sources.base import Capture

log = logging.getLogger(__name__)

PRESSURE_LIMIT = 0.9
"""Scratch space may fill to this share before the backup gives up for the guest's sake."""
PRESSURE_SECONDS = 0.25
"""How often the scratch space is looked at."""


def refuse_full(capture: Capture) -> None:
    """PermanentError when the scratch space is nearly full; else what looking at it raises."""
    pressure = capture.scratch_pressure()
    if pressure.fraction > PRESSURE_LIMIT:
        raise PermanentError(
            f"{capture.result.vm}: the guest overwrites faster than it is read: scratch space "
            f"{capture.result.scratch} is {pressure.fraction:.0%} full",
            hint="give `scratch` in vmcellar.yaml more space, or back up at a quieter hour",
        )


@contextmanager
def watched(check: Callable[[], None], stop: Callable[[], None]) -> Iterator[list[Exception]]:
    """Ask `check` while the block runs; once it raises, call `stop`, both in another thread. Gives what it raised."""
    found: list[Exception] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(PRESSURE_SECONDS):
            try:
                check()
            except Exception as error:  # whatever it is, the backup cannot go on as it should
                log.warning("stopped: %s", getattr(error, "message", error))
                found.append(error)
                stop()
                return

    thread = threading.Thread(target=watch, name="scratch-watch", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


@contextmanager
def guarded(capture: Capture, token: CancelToken) -> Iterator[None]:
    """Let the VM go once its scratch space is nearly full, whatever the block waits for; raises `refuse_full`'s error
    then. `token` is cancelled, too, for what looks at it.
    """

    def let_go() -> None:
        token.cancel()
        try:
            capture.end()
        except VmcellarError as error:  # the caller ends it again, and the next run does
            log.warning("%s: its backup job could not be ended now: %s", capture.result.vm, error.message)

    found: list[Exception] = []
    try:
        with watched(lambda: refuse_full(capture), let_go) as found:
            yield
    except Exception as error:
        if found:
            raise found[0] from error
        raise
    if found:
        raise found[0]
