"""What a whole backup of one VM holds: the VM on this host, and a lease in the repository."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from vmcellar.backup import recover
from vmcellar.backup.model import BackupRequest
from vmcellar.errors import PermanentError, VmcellarError

if TYPE_CHECKING:
    from vmcellar.engine import Engine

log = logging.getLogger(__name__)


@contextmanager
def at_work(engine: Engine, request: BackupRequest) -> Iterator[None]:
    """Hold both while the block runs, from before the snapshot until after the commit.

    Where the repository takes no lease because it is full, what dead runs of this host staged there is cleared, and it
    is tried once more. TransientError while another process works on the VM; else what the tier raises.
    """
    with engine.vm_lock(request.vm), ExitStack() as stack:
        try:
            stack.enter_context(engine.repository.working_on(request.vm))
        except PermanentError:
            if not _cleared(engine, request):
                raise
            stack.enter_context(engine.repository.working_on(request.vm))
        yield


def _cleared(engine: Engine, request: BackupRequest) -> bool:
    before = engine.staged_runs()
    try:
        recover.settle(engine, request.vm, request)
        recover.recover(engine, resume=True)
    except VmcellarError as error:
        log.warning("leftovers of dead runs could not be cleared: %s", error.message)
    return engine.staged_runs() != before
