"""Which job's policy a VM's points are judged by, and what its jobs promise of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmcellar.config.jobs import BackupJob


def governing_job(jobs: Sequence[BackupJob], vm: str, made_by: str = "") -> BackupJob | None:
    """The job that made a point, if there still is one of that name; else the only job that selects its VM by name.

    None when no job does, several do, or one's tags decide: then no policy is guessed.
    """
    for job in jobs:
        if job.name == made_by:
            return job
    selecting = [job for job in jobs if job.selects_by_name(vm) is not False]
    return selecting[0] if len(selecting) == 1 and selecting[0].selects_by_name(vm) else None


@dataclass(frozen=True, slots=True)
class Promise:
    """How old a VM's newest verified point may be, and how long a restore may take, in seconds; None: nobody asks.

    `job` is the one whose `rpo:` it is; empty without one.
    """

    rpo: int | None
    rto: int | None
    job: str = ""


def promised(jobs: Sequence[BackupJob], vm: str, made_by: str = "") -> Promise:
    """The shortest `rpo:` and `rto:` of all jobs that select the VM by name, and of the job that made its newest run,
    unless that one leaves it out by name by now. So neither a run by hand nor one of another job takes a promise away.
    """
    own = [job for job in jobs if job.selects_by_name(vm) or (job.name == made_by and not job.leaves_out(vm))]
    rpo, name = min(((job.rpo, job.name) for job in own if job.rpo is not None), default=(None, ""))
    return Promise(rpo, min((job.rto for job in own if job.rto is not None), default=None), name)
