"""An engine over a real repository, and a source of VMs that have one empty disk: whole runs without a hypervisor."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vmcellar.config.model import Config
from vmcellar.engine import Engine
from vmcellar.errors import TransientError
from vmcellar.repository.repository import Repository
from vmcellar.sources.base import (
    CaptureRequest,
    CaptureResult,
    Extent,
    Reconciled,
    ScratchPressure,
    SourceDisk,
)
from vmcellar.sources.nbd import ExportReader

SIZE = 1 << 20


@dataclass
class EmptyCapture:
    """One held instant of a VM whose only disk is a hole."""

    source: EmptySource
    result: CaptureResult
    artifacts: Mapping[str, bytes] = field(default_factory=lambda: {"domain.xml": b"<domain/>"})

    def uri(self, target: str) -> str:
        raise AssertionError(f"nothing of {target} is to be read")

    def open_reader(self, target: str) -> ExportReader:
        raise AssertionError(f"nothing of {target} is to be read")

    def dirty(self, target: str) -> list[Extent] | None:
        assert target == "vda"
        return None

    def allocated(self, target: str) -> list[Extent]:
        assert target == "vda"
        return [Extent(0, SIZE, zero=not self.source.full)]

    def scratch_pressure(self) -> ScratchPressure:
        return ScratchPressure(self.source.used, 100 - self.source.used)

    def alive(self) -> bool:
        return self.result.run_id in self.source.held

    def end(self) -> None:
        if self.source.away:
            raise TransientError(f"{self.result.vm}: libvirt is away")
        self.source.held.pop(self.result.run_id, None)


@dataclass
class EmptySource:
    """What is held at the moment, by run, and all that was `begun`; `away`: libvirt does not answer, `full`: it has
    data; `used` is in %.
    """

    held: dict[str, EmptyCapture] = field(default_factory=dict)
    begun: list[CaptureRequest] = field(default_factory=list)
    away: bool = False
    full: bool = False
    used: int = 0

    def begin(self, request: CaptureRequest) -> EmptyCapture:
        self.begun.append(request)
        disk = SourceDisk("vda", SIZE, "id", "qcow2", tracked=True, full_reason="first backup")
        result = CaptureResult(
            vm=request.vm,
            vm_uuid="u",
            run_id=request.run_id,
            repository_id=request.repository_id,
            checkpoint=f"c-{request.run_id}",
            checkpoint_xml="<c/>",
            parent=None,
            consistency="crash",
            consistency_reason="",
            freeze_seconds=0.0,
            began=time.time(),
            socket="",
            scratch="",
            disks=(disk,),
            uncovered=(),
        )
        made = self.held[request.run_id] = EmptyCapture(self, result)
        return made

    def reattach(self, result: CaptureResult) -> EmptyCapture | None:
        if self.away:
            raise TransientError(f"{result.vm}: libvirt is away")
        return self.held.get(result.run_id)

    def reconcile(
        self,
        vm: str,
        repository_id: str,  # noqa: ARG002
        kept: Collection[str],  # noqa: ARG002
        live_runs: Collection[str],
    ) -> list[Reconciled]:
        if self.away:
            raise TransientError(f"{vm}: libvirt is away")
        gone = [run for run, held in self.held.items() if held.result.vm == vm and run not in live_runs]
        return [Reconciled("job-aborted", run, str(self.held.pop(run))) for run in gone]

    def left_behind(self, repository_id: str) -> set[str]:
        return {held.result.vm for held in self.held.values() if held.result.repository_id == repository_id}


def make_engine(folder: Path) -> Engine:
    """A new repository and an engine for it."""
    (folder / "hot").mkdir()
    (folder / "passphrase").write_text("correct horse battery staple")
    config = Config.model_validate(
        {
            "tiers": {"hot": str(folder / "hot")},
            "key": {"file": str(folder / "passphrase")},
            "state": str(folder / "state"),
            "scratch": str(folder / "scratch"),
            "landing": {"dir": str(folder / "landing"), "budget": "1 MiB"},
        }
    )
    return Engine(config, Repository.init(config), EmptySource())


def again(engine: Engine) -> Engine:
    """The engine of another process with the same source, after the one of `engine` died."""
    return Engine(engine.config, Repository.open(engine.config), engine.source)
