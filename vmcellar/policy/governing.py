"""Which job's policy a VM's points are judged by."""

from __future__ import annotations

from collections.abc import Sequence

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
