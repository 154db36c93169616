"""Compare a point with the running VM: what the VM did not change since must be what the point holds.

A backup that trusted a wrong change tracker gives a point that is whole and wrong; nothing that is stored can tell. So
one instant of the VM is held, as for a backup, and up to half a GiB per disk of what the tracker calls unchanged since
the point is read and compared. The guest is frozen for the instant, as for a backup. Nothing is stored.
"""

from __future__ import annotations

import logging
import secrets
import time
from typing import TYPE_CHECKING

from vmcellar.backup import clean_check, heal, leaving, lineage
from vmcellar.errors import PermanentError
from vmcellar.progress import CancelToken
from vmcellar.repository import left_out
from vmcellar.sources.base import Capture, CaptureRequest

if TYPE_CHECKING:
    from vmcellar.engine import Engine
    from vmcellar.repository.points import RestorePoint

log = logging.getLogger(__name__)


def differences(engine: Engine, point: RestorePoint, cancel: CancelToken) -> tuple[str, ...]:
    """What is not equal, in words, by disk; empty when all that could be compared is.

    Only the newest point of a VM with a checkpoint can be compared, else PermanentError; so it is when the VM does not
    run here, and when no disk of it can be compared. TransientError while something else works on the VM. Afterwards
    nothing of the comparison is left.
    """
    points = engine.repository.points_of(point.vm)
    newest = next((each for each in reversed(points) if each.checkpoint), None)
    if newest is None or newest.id != point.id:
        raise PermanentError(f"point {point.id} is not the newest of {point.vm}, so it cannot be compared with the VM")
    chain = lineage.kept(engine.config, point.vm, points)
    request = CaptureRequest(
        vm=point.vm,
        run_id=f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(4)}",
        repository_id=engine.repository.id.hex(),
        chain=chain,
        previous=leaving.previous_disks(point),
        freeze_timeout=engine.config.limits.freeze,
    )
    with engine.vm_lock(point.vm):
        capture = engine.source.begin(request)
        try:
            return tuple(_compare(engine, capture, point, cancel))
        finally:
            capture.end()
            living = [directory.run_id for directory in engine.run_directories()]
            kept = [record.name for record in chain]
            engine.source.reconcile(point.vm, engine.repository.id.hex(), kept, living)


def _compare(engine: Engine, capture: Capture, point: RestorePoint, cancel: CancelToken) -> list[str]:
    found = []
    left = left_out.of_point(engine.repository, point)
    if left is None:
        return [f"what point {point.id} left out of the guest's paths cannot be read"]
    held = {disk.target for disk in point.disks}
    reasons = []
    for disk in capture.result.disks:
        if disk.target not in held:
            continue  # it came after the point
        dirty = None if disk.full_reason else capture.dirty(disk.target)
        if dirty is None:
            log.warning("%s: %s cannot be compared with the VM: %s", point.vm, disk.target, disk.full_reason)
            reasons.append(f"{disk.target}: {disk.full_reason}")
            continue
        skipped = heal.beside(dirty, leaving.extents(left, disk.target), disk.size)
        problem = clean_check.suspicion(engine, capture, disk, point, skipped, cancel, share=1.0)
        if problem:
            found.append(f"{disk.target}: {problem}")
    if len(reasons) == len(held & {disk.target for disk in capture.result.disks}):
        why = "; ".join(reasons) or "it has none of them"
        raise PermanentError(f"no disk of point {point.id} can be compared with {point.vm}: {why}")
    return found
