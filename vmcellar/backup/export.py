"""export: read one segment's bytes from the held instant, hash them, and land what the repository lacks.

A chunk that a compressor can take at once is sealed straight away and lands nowhere (`direct`); all others lie in the
landing file until the stage `compress`. Zeroes are recorded as content; a chunk that the repository or this run already
has is not stored.

The hand-over is `<target>.<segment>.export.npz` (what lies where), `.direct.npz` (the tables of packs sealed already)
and `.export.json` (figures), written after packs and landing file are whole.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vmcellar.backup import cutting, planning
from vmcellar.backup.direct import DirectPath, Piece
from vmcellar.backup.entropy import EntropySampler
from vmcellar.backup.landing import LandingWriter
from vmcellar.backup.model import CompressResult, Entropy, ExportResult, PackHandle
from vmcellar.backup.rundir import RunDirectory, stage_file
from vmcellar.errors import CancelledError
from vmcellar.progress import CancelToken, ProgressSink
from vmcellar.repository.layout import ID_BYTES
from vmcellar.repository.packs import SealedPack
from vmcellar.sources.nbd import ExportReader

if TYPE_CHECKING:
    from vmcellar.backup.runs import Run
    from vmcellar.engine import Engine

LANDED = np.dtype([("offset", "<u8"), ("length", "<u4"), ("place", "<i8"), ("chunk", "u1", (32,))])
"""One chunk that was read: where on the disk, its id, and where in the landing file or one of the places below."""

LOOK_SECONDS = 0.2
"""How long a signal may wait to be handled."""

PLACE_KNOWN = -1
"""The repository, or an earlier chunk of this run, has it."""
PLACE_ZERO = -2
"""It is all zero."""
PLACE_DIRECT = -3
"""It is in a pack already."""


def export(
    engine: Engine, run_id: str, target: str, segment: int, progress: ProgressSink, cancel: CancelToken
) -> ExportResult:
    """Read segment `segment` of disk `target` of the held instant and land it.

    Returns the recorded result when the segment had landed before. Raises TransientError when the NBD connection is
    lost, PermanentError when the landing zone is full, CancelledError when stopped; the half-written landing is
    removed.
    """
    run = engine.run(run_id)
    done = landed_before(engine, run.directory, target, segment)
    if done is not None:
        return done
    plan = run.segment(target, segment)
    path = engine.landing.file(run_id, target, segment)
    engine.landing.reserve(path, plan.read_bytes, cancel, run.check_pressure)  # the guest writes on meanwhile
    direct = DirectPath(engine, engine.pack_writer(run_id, run.record.request.compression), progress)
    try:
        job = _SegmentExport(engine, run, target, plan, engine.landing.writer(path), direct)
        rows = job.read(progress, cancel)
        packs = direct.finish()
        engine.landing.shrink(path, job.writer.size)
        figures = _Figures(job.seconds, job.entropy.found())
        return _hand_over(run.directory, target, rows, packs, plan, figures)
    except BaseException:
        direct.abort()
        engine.landing.drop(path)
        raise


def landed_before(engine: Engine, directory: RunDirectory, target: str, segment: int) -> ExportResult | None:
    """The recorded result, if what it names still lies in the landing zone or in packs, those made of it since too."""
    result = directory.load(stage_file(target, segment, "export"), ExportResult)
    if result is None:
        return None
    compressed = directory.load(stage_file(target, segment, "compress"), CompressResult)
    path = engine.landing.file(directory.run_id, target, segment)
    lies = compressed or not result.landed or (path.exists() and path.stat().st_size == result.landed)
    if not (lies and all(engine.staged_or_placed(pack) for pack in (compressed or result).packs)):
        directory.forget(stage_file(target, segment, "export"))
        return None
    return ExportResult(
        **{name: getattr(result, name) for name in ExportResult.__slots__ if name != "reused"},
        reused=True,
    )


class _SegmentExport:
    """Some connections take chunks from one iterator; each hashes and lands what it read while another reads."""

    def __init__(
        self,
        engine: Engine,
        run: Run,
        target: str,
        plan: planning.Segment,
        writer: LandingWriter,
        direct: DirectPath,
    ) -> None:
        self._engine = engine
        self._run = run
        self._target = target
        self._chunks = planning.chunks(plan)
        self._lock = threading.Lock()
        self._began = 0.0
        self._ended = False
        self._rows: list[tuple[int, int, int, bytes]] = []
        self._owner = (target, plan.number)
        self._by_content = run.record.request.chunks == "content"
        self._direct = direct
        self.entropy = EntropySampler()
        self._throttle = engine.throttle(run.record.request.job)
        self.writer = writer

    def read(self, progress: ProgressSink, cancel: CancelToken) -> np.ndarray:
        """All chunks of the segment as LANDED rows in disk order."""
        self._run.claims.drop(self._owner)
        inner = CancelToken(cancel)
        readers = self._engine.config.limits.connections
        try:
            with ThreadPoolExecutor(readers, thread_name_prefix=f"export-{self._target}") as pool:
                futures = [pool.submit(self._reader, progress, inner) for _ in range(readers)]
                raise_first(futures, lambda: self._look(inner))
        finally:
            self.writer.close()
        return _landed(sorted(self._rows))

    def _look(self, readers: CancelToken) -> None:
        """Beside the readers, which look for each chunk: one may wait long for its next one, or for a compressor."""
        try:
            self._run.check_pressure()
        except BaseException:
            readers.cancel()
            raise

    def _reader(self, progress: ProgressSink, cancel: CancelToken) -> None:
        def sink(offset: int, data: memoryview) -> bool:
            cancel.check()
            self._run.check_pressure()
            kept = self._take(offset, data)
            progress("export", len(data))
            return kept

        try:
            disk = f"{self._run.record.request.vm}: {self._target}"
            with self._run.connection(self._target, self._engine.config.limits.connections, cancel):
                if not self._begin():
                    return
                with ExportReader(self._run.capture.uri(self._target), disk=disk) as reader:
                    reader.read(self._ranges(cancel), self._engine.read_buffers, sink, cancel)
        except BaseException:
            cancel.cancel()
            raise

    def _begin(self) -> bool:
        """Whether there is anything left to read."""
        with self._lock:
            self._began = self._began or time.monotonic()
            return not self._ended

    @property
    def seconds(self) -> float:
        """How long it has been since the first connection was free."""
        return time.monotonic() - self._began if self._began else 0.0

    def _ranges(self, cancel: CancelToken) -> Iterator[tuple[int, int]]:
        while True:
            with self._lock:
                chunk = next(self._chunks, None)
                self._ended = chunk is None
            if chunk is None:
                return
            if self._throttle is not None:
                self._throttle.take(chunk[1], cancel)
            yield chunk

    def _take(self, offset: int, data: memoryview) -> bool:
        """Note where the chunk goes; True when its buffer went with it."""
        chunk_id = self._engine.repository.keyring.chunk_id
        found = [(chunk_id(piece), piece) for piece in (cutting.cut(data) if self._by_content else (data,))]
        data_ids = [chunk for chunk, piece in found if chunk != self._engine.zero_id(len(piece))]
        known = self._engine.repository.index.known(data_ids)
        places = [self._place(chunk, piece, known) for chunk, piece in found]
        new = [pair for pair, place in zip(found, places, strict=True) if place is None]
        kept = iter(self._keep(new, data) if new else ())
        rows = []
        for (chunk, piece), place in zip(found, places, strict=True):
            rows.append((offset, len(piece), next(kept) if place is None else place, chunk))
            offset += len(piece)
        with self._lock:
            self._rows += rows
        return any(place == PLACE_DIRECT for _, _, place, _ in rows)

    def _place(self, chunk: bytes, data: memoryview, known: Collection[bytes]) -> int | None:
        """Where the chunk is without being kept, else None; it is this segment's then."""
        if chunk == self._engine.zero_id(len(data)):
            return PLACE_ZERO
        if chunk in known or not self._run.claims.claim(chunk, self._owner):
            return PLACE_KNOWN
        return None

    def _keep(self, chunks: Sequence[Piece], data: memoryview) -> list[int]:
        for _, piece in chunks:
            self.entropy.look(piece)
        if self._direct.take(chunks, data, patient=self.writer.size + len(data) > self._engine.landing.budget):
            return [PLACE_DIRECT] * len(chunks)
        return [self.writer.append(piece) for _, piece in chunks]


def _landed(found: Sequence[tuple[int, int, int, bytes]]) -> np.ndarray:
    """The LANDED rows of (offset, length, place, chunk)."""
    rows = np.zeros(len(found), LANDED)
    for column, name in enumerate(("offset", "length", "place")):
        rows[name] = [row[column] for row in found]
    rows["chunk"] = np.frombuffer(b"".join(row[3] for row in found), np.uint8).reshape(-1, ID_BYTES)
    return rows


def raise_first(futures: Sequence[Future[None]], look: Callable[[], None] = lambda: None) -> None:
    """Wait for all readers; raise the error that came first, not the stop it caused in the other reader.

    `look` is called while it waits; what it raises comes out at once. The wait is in pieces: a signal that the kernel
    gave to another thread, as after SIGCONT, is handled by the main thread only between them.
    """
    while wait(futures, timeout=LOOK_SECONDS).not_done:
        look()
    errors = [future.exception() for future in futures]
    real = [error for error in errors if error is not None]
    if not real:
        return
    primary = [error for error in real if not isinstance(error, CancelledError)]
    raise (primary or real)[0]


class _Figures(NamedTuple):
    """How long the reading of a segment took, and the entropy of what it kept."""

    seconds: float
    entropy: Entropy


def _hand_over(
    directory: RunDirectory,
    target: str,
    rows: np.ndarray,
    packs: list[SealedPack],
    plan: planning.Segment,
    figures: _Figures,
) -> ExportResult:
    lengths = rows["length"].astype(np.int64)

    def total(which: np.ndarray) -> int:
        return int(lengths[which].sum())

    if packs:
        directory.save_arrays(stage_file(target, plan.number, "direct", "npz"), {p.id.hex(): p.rows for p in packs})
    directory.save_arrays(stage_file(target, plan.number, "export", "npz"), {"rows": rows})
    result = ExportResult(
        target,
        plan.number,
        bytes_read=int(lengths.sum()),
        zero_read=total(rows["place"] == PLACE_ZERO),
        known=total(rows["place"] == PLACE_KNOWN),
        landed=total(rows["place"] >= 0),
        seconds=figures.seconds,
        direct=total(rows["place"] == PLACE_DIRECT),
        packs=tuple(pack_handle(pack) for pack in packs),
        known_chunks=int((rows["place"] == PLACE_KNOWN).sum()),
        entropy=figures.entropy,
    )
    directory.save(stage_file(target, plan.number, "export"), result)
    return result


def pack_handle(pack: SealedPack) -> PackHandle:
    """What stages hand on of a sealed pack."""
    return PackHandle(pack.id.hex(), pack.key, str(pack.path), pack.size)
