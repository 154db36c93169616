"""One proof or one drill of a point as the policy says, judged by the suites, its evidence written."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmcellar.catalog.catalog import Catalog
from vmcellar.catalog.proofs import row_of
from vmcellar.errors import VmcellarError
from vmcellar.policy.governing import governing_job
from vmcellar.progress import CancelToken, ProgressSink
from vmcellar.quality import selection
from vmcellar.quality.judge import judge
from vmcellar.repository import evidence
from vmcellar.repository.evidence import Evidence, EvidenceName
from vmcellar.restore.prove import ProofOrder, prove_point

if TYPE_CHECKING:
    from vmcellar.config.model import Config
    from vmcellar.crypto.recipient import PrivateKey
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository

log = logging.getLogger(__name__)

Recorded = tuple[Evidence, EvidenceName]


@dataclass(frozen=True, slots=True)
class DrillWishes:
    """What one drill is asked for beyond the policy: see `vmcellar.restore.drill.order_of`."""

    commands: tuple[str, ...] = ()
    keep: bool = False
    private: PrivateKey | None = None


def prove(
    repository: Repository,
    config: Config,
    point: RestorePoint,
    stale: tuple[str, ...] | None,
    progress: ProgressSink,
    cancel: CancelToken,
) -> Recorded:
    """Prove a point and write the evidence; `stale` is what a comparison with its VM found. See `prove_point`."""
    job = governing_job(config.backups, point.vm, point.job)
    others = [each for each in repository.points_of(point.vm) if each.id != point.id]
    points = [*evidence.judged(others, evidence.standings(repository.tier)), point]
    age = selection.age_of_newest(points, point, repository.clock())
    limit = float(job.rpo) if job and job.rpo and age is not None else None
    order = ProofOrder(config.scratch, age, limit, stale)
    return record(repository, config, prove_point(repository, point, order, progress, cancel))


def drill(
    repository: Repository,
    config: Config,
    point: RestorePoint,
    progress: ProgressSink,
    cancel: CancelToken,
    wishes: DrillWishes,
) -> Recorded:
    """Drill a point as its job's policy and the wishes say, and write the evidence. See `drill_point`."""
    from vmcellar.restore.drill import drill_point, order_of  # noqa: PLC0415  (needs libvirt)

    order = order_of(config, point, wishes.commands, keep=wishes.keep, private=wishes.private)
    return record(repository, config, drill_point(repository, point, order, progress, cancel))


def record(repository: Repository, config: Config, found: Evidence) -> Recorded:
    """Judge evidence and write it; a catalog that cannot be written is warned about, and fails nothing."""
    judged = replace(judge(found), repository=repository.id.hex())
    name = evidence.write(repository, judged)
    try:
        Catalog.of(config, repository.id).add([row_of(judged, name)])
    except VmcellarError as error:
        log.warning("%s: evidence about %s is not in the catalog: %s", judged.vm, judged.point, error.message)
    return judged, name
