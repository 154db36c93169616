"""compress: what a segment landed becomes sealed packs in the tier's staging folder, beside those that `export` sealed
itself; then the landing goes.

Runs on the engine's one pool of CPU threads, at a lower priority than the reading: the guest and its release come
first.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

import numpy as np

from vmcellar.backup.export import pack_handle
from vmcellar.backup.landing import LandingReader
from vmcellar.backup.model import CompressResult, ExportResult
from vmcellar.backup.rundir import RunDirectory, stage_file
from vmcellar.errors import PermanentError
from vmcellar.progress import CancelToken, ProgressSink
from vmcellar.repository.packs import PackWriter, SealedPack

if TYPE_CHECKING:
    from vmcellar.engine import Engine

IN_FLIGHT = 8
"""Chunks handed to the CPU pool ahead of the one that is waited for; each holds its compressed form, at most 1
MiB.
"""


def compress(
    engine: Engine, run_id: str, target: str, segment: int, progress: ProgressSink, cancel: CancelToken
) -> CompressResult:
    """Seal what segment `segment` landed into packs.

    Returns the recorded result when its packs are still staged or placed. PermanentError when the tier is full or
    the landing is gone; what was half-written is removed and the landing kept, so that the stage can run again.
    """
    run = engine.run(run_id)
    done = _compressed_before(engine, run.directory, target, segment)
    if done is not None:
        return done
    started = time.monotonic()
    exported, rows = exported_segment(run.directory, target, segment)
    landed = rows[rows["place"] >= 0]
    packs = _seal(engine, run_id, target, segment, landed, progress, cancel) if len(landed) else []
    handles = (*exported.packs, *(pack_handle(pack) for pack in packs))
    if handles:
        sealed = {pack.id.hex(): pack.rows for pack in packs}
        before = run.directory.load_arrays(stage_file(target, segment, "direct", "npz")) if exported.packs else {}
        run.directory.save_arrays(stage_file(target, segment, "packs", "npz"), {**before, **sealed})
    result = CompressResult(
        target,
        segment,
        handles,
        exported.landed + exported.direct,
        sum(pack.size for pack in handles),
        time.monotonic() - started,
    )
    run.directory.save(stage_file(target, segment, "compress"), result)
    engine.landing.drop(engine.landing.file(run_id, target, segment))
    return result


def exported_segment(directory: RunDirectory, target: str, segment: int) -> tuple[ExportResult, np.ndarray]:
    """The result and the LANDED rows of an exported segment; PermanentError when it has not been exported."""
    result = directory.load(stage_file(target, segment, "export"), ExportResult)
    if result is None:
        raise PermanentError(
            f"run {directory.run_id}: segment {segment} of {target} has not been exported",
            hint="run the backup again",
        )
    return result, directory.load_arrays(stage_file(target, segment, "export", "npz"))["rows"]


def _compressed_before(engine: Engine, directory: RunDirectory, target: str, segment: int) -> CompressResult | None:
    result = directory.load(stage_file(target, segment, "compress"), CompressResult)
    if result is None:
        return None
    if all(engine.staged_or_placed(pack) for pack in result.packs):
        return CompressResult(
            result.target,
            result.segment,
            result.packs,
            result.bytes_plain,
            result.bytes_stored,
            result.seconds,
            reused=True,
        )
    directory.forget(stage_file(target, segment, "compress"))
    return None


def _seal(
    engine: Engine,
    run_id: str,
    target: str,
    segment: int,
    landed: np.ndarray,
    progress: ProgressSink,
    cancel: CancelToken,
) -> list[SealedPack]:
    landed = landed[np.argsort(landed["place"], kind="stable")]
    size = int((landed["place"] + landed["length"]).max())
    writer = engine.pack_writer(run_id, engine.run(run_id).record.request.compression)
    pending: deque[Future[int]] = deque()
    with LandingReader(engine.landing.file(run_id, target, segment), size) as reader:
        try:
            for row in landed:
                cancel.check()
                pending.append(engine.cpu.submit(_append, engine, writer, reader, row))
                if len(pending) >= IN_FLIGHT:
                    progress("compress", pending.popleft().result())
            while pending:
                progress("compress", pending.popleft().result())
            return writer.finish()
        except BaseException:
            wait([future for future in pending if not future.cancel()])
            writer.abort()
            raise


def _append(engine: Engine, writer: PackWriter, reader: LandingReader, row: np.void) -> int:
    length = int(row["length"])
    with engine.read_buffers.buffer() as buffer:
        piece = buffer[:length]
        reader.read_into(int(row["place"]), piece)
        writer.append(row["chunk"].tobytes(), piece)
    return length
