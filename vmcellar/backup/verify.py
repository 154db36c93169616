"""verify: read one segment's packs back from the tier, decode every chunk, and compare it with what the source
gave.

The chunk ids are keyed digests that were taken from the bytes as they came from the source, so a chunk that decodes
to its id is the source's. A point with an unverified pack is never committed (DESIGN.md, section 3).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vmcellar.backup.model import PackHandle, VerifyResult
from vmcellar.backup.packs_at_once import each_pack
from vmcellar.backup.place import compressed
from vmcellar.backup.rundir import stage_file
from vmcellar.progress import CancelToken, ProgressSink
from vmcellar.repository.packs import verify_pack

if TYPE_CHECKING:
    from vmcellar.engine import Engine

VERIFIED_AT_ONCE = 2
"""Packs that are checked at a time: the next one has work for the engine's threads while the last pieces of one end."""


def verify(
    engine: Engine, run_id: str, target: str, segment: int, progress: ProgressSink, cancel: CancelToken
) -> VerifyResult:
    """Check the segment's placed packs. IntegrityError names the pack and chunk that is not what was read."""
    directory = engine.run(run_id).directory
    packed = compressed(directory, target, segment)
    name = stage_file(target, segment, "verify")
    ids = tuple(pack.id for pack in packed.packs)
    done = directory.load(name, VerifyResult)
    if done is not None and done.packs == ids and all(engine.placed(pack) for pack in packed.packs):
        return VerifyResult(target, segment, ids, done.chunks, done.bytes, done.seconds, reused=True)
    started = time.monotonic()
    repository = engine.repository

    def check(pack: PackHandle, stop: CancelToken) -> int:
        return verify_pack(repository.tier, pack.key, repository.keyring, engine.cpu, progress, stop)

    chunks = sum(each_pack(packed.packs, VERIFIED_AT_ONCE, check, cancel))
    size = sum(pack.size for pack in packed.packs)
    result = VerifyResult(target, segment, ids, chunks, size, time.monotonic() - started)
    directory.save(name, result)
    return result
