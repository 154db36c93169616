"""place: make one segment's sealed packs durable on the tier. Nothing refers to them yet."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from vmcellar.backup.model import CompressResult, PackHandle, PlaceResult
from vmcellar.backup.packs_at_once import each_pack
from vmcellar.backup.rundir import RunDirectory, stage_file
from vmcellar.errors import PermanentError
from vmcellar.progress import CancelToken, ProgressSink

if TYPE_CHECKING:
    from vmcellar.engine import Engine

PLACED_AT_ONCE = 4
"""Packs on their way to the tier at a time, over all segments of all VMs of this process, as `tiers move` has it."""


def place(
    engine: Engine, run_id: str, target: str, segment: int, progress: ProgressSink, cancel: CancelToken
) -> PlaceResult:
    """Adopt the segment's packs into the tier, some at a time; a pack that is there already is left alone.

    Raises what the tier raises: TransientError for what may pass, PermanentError when it is full.
    """
    directory = engine.run(run_id).directory
    packed = compressed(directory, target, segment)
    tier = engine.repository.tier
    started = time.monotonic()

    def adopt(pack: PackHandle, stop: CancelToken) -> None:
        path = Path(pack.path)
        with engine.place_slots:
            stop.check()
            if path.exists() or not engine.placed(pack):  # what is still staged may be placed, but not durable yet
                tier.adopt(path, pack.key)
        progress("place", pack.size)

    each_pack(packed.packs, PLACED_AT_ONCE, adopt, cancel)
    result = PlaceResult(
        target,
        segment,
        tier.name,
        tuple(pack.id for pack in packed.packs),
        sum(pack.size for pack in packed.packs),
        time.monotonic() - started,
    )
    directory.save(stage_file(target, segment, "place"), result)
    return result


def compressed(directory: RunDirectory, target: str, segment: int) -> CompressResult:
    """The hand-over of `compress`; PermanentError when the stage has not run."""
    result = directory.load(stage_file(target, segment, "compress"), CompressResult)
    if result is None:
        raise PermanentError(
            f"run {directory.run_id}: segment {segment} of {target} has not been compressed",
            hint="run the backup again",
        )
    return result
