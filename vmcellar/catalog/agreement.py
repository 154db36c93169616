"""Do the segments of a disk add up to it? Judged in the database, once for each run; those that do not are noted.

A run writes what it did with a disk, and with each of its segments, from the same figures in one transaction: as many
segments as the disk says, whose bytes and known chunks sum to the disk's, every one. Anything else is damage, or a
writer that was wrong. Where there is no segment at all (runs that were read back from points, or noted before there
were segments) nothing is known, and nothing is said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import bindparam, delete, insert, text, update

from vmcellar.catalog.models import JudgedSegments, RunDisk

if TYPE_CHECKING:
    from vmcellar.catalog.catalog import Catalog

AGAIN_SECONDS = 7 * 86400.0
"""Runs that began up to so long before the last look are judged again: a run is written down when it ends."""
SUMS = ("bytes_read", "bytes_zero", "bytes_changed", "bytes_known", "bytes_new", "bytes_stored", "chunks_known")
_UNTIL = "SELECT until FROM judged_segments WHERE repository = :repository"
_WRONG = f"""
SELECT run_disks.run_id, run_disks.target FROM runs JOIN run_disks ON run_disks.run_id = runs.id
WHERE repository = :repository AND started >= :since AND segments_agree IS NULL AND EXISTS (
  SELECT 1 FROM segments WHERE segments.run_id = run_disks.run_id AND segments.target = run_disks.target
  GROUP BY segments.run_id HAVING count(*) <> run_disks.segments
  OR {" OR ".join(f"sum(segments.{name}) <> run_disks.{name}" for name in SUMS)})
"""  # noqa: S608 (names of columns)


def judge_segments(catalog: Catalog, now: float) -> int:
    """Judge the runs that no look has judged yet, and note which disks do not agree with their segments; how many.

    `now` is in seconds since the epoch. The first look at a catalog reads all of its segments, later ones those of the
    last days. Raises what reading and writing the catalog raise; a crash leaves all that this look found, or nothing.
    """
    own = {"repository": catalog.repository}
    with catalog.reading() as connection:
        until = connection.execute(text(_UNTIL).bindparams(**own)).scalar()
        since = min(float(until), now) - AGAIN_SECONDS if until is not None else 0.0  # a clock may have been ahead
        wrong = list(connection.execute(text(_WRONG).bindparams(**own, since=since)))
    with catalog.writing() as connection:
        if wrong:
            table = RunDisk.__table__
            which = table.c.run_id == bindparam("run"), table.c.target == bindparam("disk")
            rows = [{"run": run, "disk": disk} for run, disk in wrong]
            connection.execute(update(RunDisk).where(*which).values(segments_agree=False), rows)
        connection.execute(delete(JudgedSegments).where(JudgedSegments.repository == catalog.repository))
        connection.execute(insert(JudgedSegments).values(**own, until=now))
    return len(wrong)
