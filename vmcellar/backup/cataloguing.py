"""Noting runs in the catalog. What cannot be noted is a warning: no backup fails for its history.

SQLAlchemy is loaded when there is something to note, at the end of a run, or ahead of that while the source is read.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmcellar.backup.figures import segment_figures, stage_figures
from vmcellar.backup.model import (
    BackupRequest,
    CompressResult,
    ExportResult,
    PlaceResult,
    PointSummary,
    ReleaseResult,
    VerifyResult,
    make_ready,
)
from vmcellar.backup.runs import Run as BackupRun
from vmcellar.errors import CancelledError
from vmcellar.sources.base import UnknownVmError

if TYPE_CHECKING:
    from vmcellar.catalog.catalog import Catalog
    from vmcellar.catalog.models import Base
    from vmcellar.engine import Engine
    from vmcellar.repository.points import RestorePoint

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 120.0
"""How long a run waits for a catalog on a server; its VM is locked for other backups meanwhile."""


def load_ahead() -> None:
    """Have ready while the source is read what an incremental would wait for at its end, a quarter of a second:
    SQLAlchemy with the catalog's tables, and the forms of the stages' hand-overs. Touches no file.
    """
    threading.Thread(target=_load, name="load-ahead", daemon=True).start()


def _load() -> None:
    with suppress(ImportError):  # told when there is something to note
        make_ready(ExportResult, CompressResult, PlaceResult, VerifyResult, ReleaseResult)
        from sqlalchemy.dialects import sqlite  # noqa: F401, PLC0415
        from sqlalchemy.orm import configure_mappers  # noqa: PLC0415

        from vmcellar.catalog import catalog, rebuild  # noqa: F401, PLC0415

        configure_mappers()


@contextmanager
def noting_failure(engine: Engine, request: BackupRequest) -> Iterator[None]:
    """Note the attempt as failed or cancelled when the block raises; the error goes on as it is.

    Not that of a name that was mistyped: there is no such VM, and alerts would ask for its backup for ever.
    """
    began = time.time()
    try:
        yield
    except BaseException as error:
        if isinstance(error, UnknownVmError) and not _in_a_job(engine, request):
            raise
        stopped = isinstance(error, CancelledError) or not isinstance(error, Exception)
        note_failed(engine, request, began, "cancelled" if stopped else "failed", error)
        raise


def _in_a_job(engine: Engine, request: BackupRequest) -> bool:
    """Whether a job runs this, or one names the VM, not by a glob or a tag."""
    return bool(request.job) or any(request.vm in job.domains for job in engine.config.backups)


def note_failed(engine: Engine, request: BackupRequest, began: float, outcome: str, error: BaseException | str) -> None:
    """Note an attempt without a point: `outcome` is failed, cancelled or died."""

    def rows() -> list[Base]:
        from vmcellar.catalog.models import Run  # noqa: PLC0415

        return [
            Run(
                id=f"{outcome}-{datetime.fromtimestamp(began, UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}",
                repository=engine.repository.id.hex(),
                vm=request.vm,
                job=request.job,
                started=began,
                finished=time.time(),
                outcome=outcome,
                error=str(getattr(error, "message", error)) or type(error).__name__,
            )
        ]

    _note(engine, request.vm, rows)


def note_committed(engine: Engine, run: BackupRun, point: RestorePoint) -> None:
    """Note a run that became a point; to be called while its hand-overs are there."""

    def rows() -> list[Base]:
        from vmcellar.catalog import rebuild  # noqa: PLC0415
        from vmcellar.catalog.models import Segment, Stage  # noqa: PLC0415

        repository = engine.repository.id.hex()
        differential = point.kind == "incremental" and run.record.request.mode == "differential"
        row = rebuild.run_row(repository, point, differential=differential)
        row.recorded_by = "run"
        stages = [
            Stage(run_id=point.run_id, target=target, stage=stage, **found._asdict())
            for (target, stage), found in stage_figures(run).items()
        ]
        segments = [Segment(run_id=point.run_id, **found) for found in segment_figures(run)]
        return [rebuild.point_row(repository, point), row, *rebuild.disk_rows(point), *stages, *segments]

    _note(engine, point.vm, rows)


def note_hook_failures(engine: Engine, point: PointSummary, failures: Sequence[str]) -> None:
    """Note with the run of a point that is committed what its hooks failed at, so that people are told."""
    _within(engine, point.vm, lambda catalog: catalog.note_error(point.id, "; ".join(failures)))


def _note(engine: Engine, vm: str, rows: Callable[[], list[Base]], patience: float = PATIENCE_SECONDS) -> None:
    """Returns after `patience` seconds at most: a server's process that was stopped, or that waits for an absent
    standby, answers nothing, and no timeout of the server or of the network ends that.
    """
    try:
        found = rows()  # here, as the run's directory may go once this returns
    except Exception as error:  # also what a library raises: whatever it is, the backup is done
        _warn(vm, error)
        return
    _within(engine, vm, lambda catalog: catalog.add(found), patience)


def _within(engine: Engine, vm: str, write: Callable[[Catalog], object], patience: float = PATIENCE_SECONDS) -> None:
    if engine.config.catalog.url is None:
        _try(engine, vm, write)
        return
    writing = threading.Thread(target=_try, args=(engine, vm, write), name=f"catalog-{vm}", daemon=True)
    writing.start()
    writing.join(patience)
    if writing.is_alive():
        _warn(vm, f"its server gave no answer for {patience:.0f} s")


def _try(engine: Engine, vm: str, write: Callable[[Catalog], object]) -> None:
    try:
        write(engine.catalog)
    except Exception as error:  # as above
        _warn(vm, error)


def _warn(vm: str, error: Exception | str) -> None:
    log.warning("%s: the catalog has no record of this run: %s", vm, getattr(error, "message", error))
