"""The simulated VMs of the soak: disks that are image files, beside those of libvirt, in one source."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faults.imagesource import ImageReader, ImageSource
from vmcellar.backup import clean_check, export, selection
from vmcellar.sources import libvirt_source
from vmcellar.sources.base import CaptureRequest, CaptureResult, Reconciled
from vmcellar.sources.nbd import ExportReader

PREFIX = "sim-"


def folder_of(vm: str) -> Path:
    """Where a simulated VM's images lie: each has a folder of its own, as processes look through them at once."""
    return Path(os.environ["SOAK_FOLDER"]) / vm


@contextmanager
def still(vm: str) -> Iterator[Path]:
    """The folder of a simulated VM, which writes nothing meanwhile."""
    folder = folder_of(vm)
    file = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(file)


class MixedSource:
    """Stands for `LibvirtSource`; VMs whose names begin with `sim-` are images."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._real = _REAL[0](*arguments, **options)

    def _of(self, vm: str) -> Any:
        return ImageSource(folder_of(vm)) if vm.startswith(PREFIX) else self._real

    def begin(self, request: CaptureRequest) -> Any:
        """See CaptureSource."""
        if not request.vm.startswith(PREFIX):
            return self._real.begin(request)
        with still(request.vm) as folder:
            return ImageSource(folder).begin(request)

    def reattach(self, result: CaptureResult) -> Any:
        """See CaptureSource."""
        return self._of(result.vm).reattach(result)

    def reconcile(
        self, vm: str, repository_id: str, kept: Collection[str], live_runs: Collection[str]
    ) -> list[Reconciled]:
        """See CaptureSource."""
        found: list[Reconciled] = self._of(vm).reconcile(vm, repository_id, kept, live_runs)
        return found

    def left_behind(self, repository_id: str) -> set[str]:
        """See CaptureSource; of the simulated ones nothing is left, as none is killed."""
        found: set[str] = self._real.left_behind(repository_id)
        return found


_REAL: list[Any] = []


def install() -> None:
    """Put the mixed source, its reader and its VMs into this process."""
    _REAL.append(libvirt_source.LibvirtSource)
    real_reader, real_vms = ExportReader, selection.known_vms

    def reader(uri: str, **options: Any) -> Any:
        return (ImageReader if uri.startswith("image:") else real_reader)(uri, **options)

    def known_vms(uri: str, *, tags: bool) -> list[selection.KnownVm]:
        images = [selection.KnownVm(path.name, True, frozenset()) for path in folder_of("").glob(f"{PREFIX}*")]
        return sorted([*real_vms(uri, tags=tags), *images], key=lambda vm: vm.name)

    libvirt_source.__dict__["LibvirtSource"] = MixedSource
    for module in (export, clean_check):
        module.__dict__["ExportReader"] = reader
    selection.__dict__["known_vms"] = known_vms
