"""A source of VMs whose disks are image files: whole backups, also incremental ones, without a hypervisor.

What a hypervisor would hold outlives the process that asked for it: it lies in a folder, which the counted calls of
`tests.faults.steps` do not touch.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vmcellar.backup.model import from_json, to_json
from vmcellar.memory import BufferPool
from vmcellar.progress import CancelToken
from vmcellar.repository.layout import GRID
from vmcellar.sources.base import (
    CaptureRequest,
    CaptureResult,
    Extent,
    Reconciled,
    ScratchPressure,
    SourceDisk,
)
from vmcellar.sources.nbd import ExportReader

_unlink = os.unlink  # what the hypervisor does is no step of ours
DOMAIN = b"<domain><name>%s</name></domain>"


class ImageReader:
    """Stands for `ExportReader`: reads a held image."""

    def __init__(self, uri: str, *, disk: str = "") -> None:
        self._path, self.disk = Path(uri.removeprefix("image:")), disk

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def read(
        self,
        requests: Iterable[tuple[int, int]],
        pool: BufferPool,
        sink: Callable[[int, memoryview], bool | None],
        cancel: CancelToken | None = None,
    ) -> None:
        data = self._path.read_bytes()
        for offset, length in requests:
            if cancel is not None:
                cancel.check()
            buffer = pool.acquire()
            buffer[:length] = data[offset : offset + length]
            if not sink(offset, buffer[:length]):
                pool.release(buffer)


def grid(new: bytes, old: bytes | None) -> list[Extent]:
    """The pieces of `new` that differ from `old`; without `old` all of them, `zero` where they are."""
    found = []
    for start in range(0, len(new), GRID):
        piece = new[start : start + GRID]
        zero = not piece.strip(b"\0")
        if old is None or old[start : start + GRID] != piece:
            found.append(Extent(start, len(piece), zero))
    return found


@dataclass
class ImageCapture:
    """One held instant."""

    source: ImageSource
    result: CaptureResult

    @property
    def artifacts(self) -> Mapping[str, bytes]:
        return {"domain.xml": DOMAIN % self.result.vm.encode()}

    def _held(self, target: str) -> Path:
        return self.source.folder / f"held-{self.result.run_id}.{target}"

    def uri(self, target: str) -> str:
        return f"image:{self._held(target)}"

    def open_reader(self, target: str) -> ExportReader:
        raise NotImplementedError(target)  # nothing is read over NBD here: `uri` names a file

    def dirty(self, target: str) -> list[Extent] | None:
        if self.result.parent is None:
            return None
        before = (self.source.folder / f"{self.result.vm}@{self.result.parent}.{target}").read_bytes()
        return grid(self._held(target).read_bytes(), before)

    def allocated(self, target: str) -> list[Extent]:
        return grid(self._held(target).read_bytes(), None)

    def scratch_pressure(self) -> ScratchPressure:
        return ScratchPressure(0, 100)

    def alive(self) -> bool:
        return (self.source.folder / f"held-{self.result.run_id}").exists()

    def end(self) -> None:
        for path in self.source.folder.glob(f"held-{self.result.run_id}*"):
            _unlink(path)


@dataclass
class ImageSource:
    """VMs as `<folder>/<vm>.<target>` files; checkpoints are copies of them."""

    folder: Path

    def disks_of(self, vm: str) -> dict[str, bytes]:
        return {path.suffix[1:]: path.read_bytes() for path in sorted(self.folder.glob(f"{vm}.vd?"))}

    def write(self, vm: str, target: str, data: bytes) -> None:
        (self.folder / f"{vm}.{target}").write_bytes(data)

    def begin(self, request: CaptureRequest) -> ImageCapture:
        checkpoint = f"c-{request.run_id}"
        parent = request.parent
        disks = []
        for target, data in self.disks_of(request.vm).items():
            path = self.folder / f"{request.vm}.{target}"
            shutil.copyfile(path, self.folder / f"{request.vm}@{checkpoint}.{target}")
            shutil.copyfile(path, self.folder / f"held-{request.run_id}.{target}")
            reason = "" if parent else request.force_full or "first backup"
            disks.append(SourceDisk(target, len(data), f"id-{target}", "raw", tracked=True, full_reason=reason))
        result = CaptureResult(
            vm=request.vm,
            vm_uuid="u",
            run_id=request.run_id,
            repository_id=request.repository_id,
            checkpoint=checkpoint,
            checkpoint_xml="<c/>",
            parent=parent,
            consistency="crash",
            consistency_reason="",
            freeze_seconds=0.0,
            began=time.time(),
            socket="",
            scratch="",
            disks=tuple(disks),
            uncovered=(),
        )
        (self.folder / f"held-{request.run_id}").write_bytes(to_json(result))
        return ImageCapture(self, result)

    def reattach(self, result: CaptureResult) -> ImageCapture | None:
        found = ImageCapture(self, result)
        return found if found.alive() else None

    def held(self) -> list[CaptureResult]:
        """All instants that are held now."""
        paths = [path for path in self.folder.glob("held-*") if not path.suffix.startswith(".vd")]
        return [from_json(CaptureResult, path.read_bytes()) for path in sorted(paths)]

    def let_go(self) -> None:
        """All VMs are shut off: nothing is held any more."""
        for result in self.held():
            ImageCapture(self, result).end()

    def reconcile(
        self,
        vm: str,
        repository_id: str,  # noqa: ARG002
        kept: Collection[str],
        live_runs: Collection[str],
    ) -> list[Reconciled]:
        done = []
        for result in self.held():
            if result.vm == vm and result.run_id not in live_runs:
                ImageCapture(self, result).end()
                done.append(Reconciled("job-aborted", result.run_id, "held"))
        stay = {*kept, *(f"c-{run}" for run in live_runs)}
        for path in self.folder.glob(f"{vm}@c-*"):
            if path.stem.partition("@")[2] not in stay:
                _unlink(path)
        return done

    def left_behind(self, repository_id: str) -> set[str]:
        return {result.vm for result in self.held() if result.repository_id == repository_id}
