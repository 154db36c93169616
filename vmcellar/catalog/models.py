"""The tables of the catalog (docs/catalog.md). Sizes are bytes, durations seconds, instants seconds since the epoch.

Instants are plain numbers, so that every database keeps them alike and no time zone can creep in: in SQLite
`datetime(started, 'unixepoch')` reads them, in PostgreSQL `to_timestamp(started)`.

A change here needs a new file in `migrations/versions`; a test compares the two.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Double, Index, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

Bytes = BigInteger
"""Sizes: SQLite's and PostgreSQL's 64-bit integers."""


class Base(MappedAsDataclass, DeclarativeBase):
    """Base of all tables; a row is made with the names of its columns."""


class Run(Base, kw_only=True):
    """One attempt to back up one VM. `outcome` is `done`, `failed`, `cancelled` or `died` (its process did).

    `recorded_by` is `run` when the backup itself wrote the row, `point` when `catalog rebuild` read it from a point.
    """

    __tablename__ = "runs"
    __table_args__ = (Index("runs_by_vm", "repository", "vm", "started"), Index("runs_by_point", "point_id"))

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    repository: Mapped[str] = mapped_column(String(32))
    vm: Mapped[str] = mapped_column(String(255))
    started: Mapped[float] = mapped_column(Double)
    outcome: Mapped[str] = mapped_column(String(16))
    job: Mapped[str] = mapped_column(String(255), default="")
    kind: Mapped[str] = mapped_column(String(16), default="")
    reason: Mapped[str] = mapped_column(Text, default="")
    finished: Mapped[float | None] = mapped_column(Double, default=None)
    error: Mapped[str] = mapped_column(Text, default="")
    point_id: Mapped[str | None] = mapped_column(String(32), default=None)
    parent: Mapped[str | None] = mapped_column(String(32), default=None)
    consistency: Mapped[str] = mapped_column(String(16), default="")
    held_seconds: Mapped[float | None] = mapped_column(Double, default=None)
    freeze_seconds: Mapped[float | None] = mapped_column(Double, default=None)
    warnings: Mapped[list[str]] = mapped_column(JSON, default_factory=list)
    uncovered: Mapped[list[str]] = mapped_column(JSON, default_factory=list)
    recorded_by: Mapped[str] = mapped_column(String(8), default="run")


class RunDisk(Base, kw_only=True):
    """What one run did with one disk; the byte counts are those of `DiskRecord` in a point.

    `segments_agree` is false once a look has found that its segments do not add up to it (`catalog/agreement.py`).
    """

    __tablename__ = "run_disks"

    run_id: Mapped[str] = mapped_column(String(80), primary_key=True)
    target: Mapped[str] = mapped_column(String(64), primary_key=True)
    size: Mapped[int] = mapped_column(Bytes)
    full_reason: Mapped[str] = mapped_column(Text, default="")
    bytes_read: Mapped[int] = mapped_column(Bytes, default=0)
    bytes_zero: Mapped[int] = mapped_column(Bytes, default=0)
    bytes_changed: Mapped[int] = mapped_column(Bytes, default=0)
    bytes_known: Mapped[int] = mapped_column(Bytes, default=0)
    bytes_new: Mapped[int] = mapped_column(Bytes, default=0)
    bytes_stored: Mapped[int] = mapped_column(Bytes, default=0)
    chunks_known: Mapped[int] = mapped_column(Bytes, default=0)
    segments: Mapped[int] = mapped_column(Bytes, default=0)
    entropy: Mapped[float | None] = mapped_column(Double, default=None)
    tier: Mapped[str] = mapped_column(String(64), default="")
    segments_agree: Mapped[bool | None] = mapped_column(default=None)


class Segment(Base, kw_only=True):
    """What one run did with one segment of a disk, the unit of retry; known only to the run itself.

    `bytes_zero` counts its holes too. `retries` is how often one of its stages failed and was done again.
    """

    __tablename__ = "segments"

    run_id: Mapped[str] = mapped_column(String(80), primary_key=True)
    target: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    bytes_read: Mapped[int] = mapped_column(Bytes)
    bytes_zero: Mapped[int] = mapped_column(Bytes)
    bytes_changed: Mapped[int] = mapped_column(Bytes)
    bytes_known: Mapped[int] = mapped_column(Bytes)
    bytes_new: Mapped[int] = mapped_column(Bytes)
    bytes_stored: Mapped[int] = mapped_column(Bytes)
    chunks_known: Mapped[int] = mapped_column(Bytes)
    export_seconds: Mapped[float] = mapped_column(Double)
    compress_seconds: Mapped[float] = mapped_column(Double)
    place_seconds: Mapped[float] = mapped_column(Double)
    verify_seconds: Mapped[float] = mapped_column(Double)
    entropy: Mapped[float | None] = mapped_column(Double, default=None)
    tier: Mapped[str] = mapped_column(String(64), default="")
    retries: Mapped[int] = mapped_column(default=0)


class Stage(Base, kw_only=True):
    """One stage's work on one disk, summed over its segments; stages overlap, so seconds exceed the run's.

    `target` is empty, `bytes` and `retries` unknown where only the sum over all disks is known (rows from points).
    """

    __tablename__ = "stages"

    run_id: Mapped[str] = mapped_column(String(80), primary_key=True)
    target: Mapped[str] = mapped_column(String(64), primary_key=True)
    stage: Mapped[str] = mapped_column(String(16), primary_key=True)
    seconds: Mapped[float] = mapped_column(Double)
    bytes: Mapped[int | None] = mapped_column(Bytes, default=None)
    retries: Mapped[int | None] = mapped_column(default=None)


class Point(Base, kw_only=True):
    """A restore point that is, or was, in the repository; `gone` is when it was first seen to be no more there."""

    __tablename__ = "points"
    __table_args__ = (Index("points_by_vm", "repository", "vm", "time"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    repository: Mapped[str] = mapped_column(String(32))
    vm: Mapped[str] = mapped_column(String(255))
    run_id: Mapped[str] = mapped_column(String(80))
    time: Mapped[float] = mapped_column(Double)
    kind: Mapped[str] = mapped_column(String(16))
    consistency: Mapped[str] = mapped_column(String(16))
    verified: Mapped[bool]
    disks: Mapped[int]
    bytes_size: Mapped[int] = mapped_column(Bytes)
    bytes_stored: Mapped[int] = mapped_column(Bytes)
    parent: Mapped[str | None] = mapped_column(String(32), default=None)
    gone: Mapped[float | None] = mapped_column(Double, default=None)


class Evidence(Base, kw_only=True):
    """What a verification or a drill of a point found. `rto_seconds` is from the order to the running VM."""

    __tablename__ = "evidence"
    __table_args__ = (Index("evidence_by_point", "point_id"), Index("evidence_by_vm", "repository", "vm", "time"))

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    repository: Mapped[str] = mapped_column(String(32))
    vm: Mapped[str] = mapped_column(String(255))
    point_id: Mapped[str] = mapped_column(String(32))
    time: Mapped[float] = mapped_column(Double)
    kind: Mapped[str] = mapped_column(String(16))
    ok: Mapped[bool]
    seconds: Mapped[float | None] = mapped_column(Double, default=None)
    rto_seconds: Mapped[float | None] = mapped_column(Double, default=None)
    detail: Mapped[str] = mapped_column(Text, default="")


class ScheduleChange(Base, kw_only=True):
    """A change of a VM's schedule, and why; `before` and `after` are the schedule's own words.

    `predicted` is what was expected of it: `rpo` in seconds, `runs` a day before, figures per day of `was` and `will`.
    """

    __tablename__ = "schedule_changes"
    __table_args__ = (Index("schedule_changes_by_vm", "repository", "vm", "time"),)

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    repository: Mapped[str] = mapped_column(String(32))
    vm: Mapped[str] = mapped_column(String(255))
    time: Mapped[float] = mapped_column(Double)
    before: Mapped[str] = mapped_column(Text)
    after: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    by: Mapped[str] = mapped_column(String(64), default="")
    applied: Mapped[bool] = mapped_column(default=False)
    predicted: Mapped[dict[str, Any] | None] = mapped_column(JSON, default=None)


class StorageAdvice(Base, kw_only=True):
    """What `advise --storage` advised on one subject: `vm` is empty where it is about the repository.

    `figure` is what was measured then and `predicted` what it should become (`analysis/followed.py` says of what);
    `followed` is when it was first seen to be done.
    """

    __tablename__ = "storage_advice"
    __table_args__ = (Index("storage_advice_by_time", "repository", "time"),)

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    repository: Mapped[str] = mapped_column(String(32))
    about: Mapped[str] = mapped_column(String(32))
    vm: Mapped[str] = mapped_column(String(255))
    time: Mapped[float] = mapped_column(Double)
    today: Mapped[str] = mapped_column(Text)
    advised: Mapped[str] = mapped_column(Text)
    figure: Mapped[float] = mapped_column(Double)
    predicted: Mapped[float] = mapped_column(Double)
    followed: Mapped[float | None] = mapped_column(Double, default=None)


class Anomaly(Base, kw_only=True):
    """A strange thing of one VM that has consequences, noted once: what was done, until a person has `judged` it.

    `began` is the instant before which points can be trusted, `at` when it was first and `last` when it was last seen.
    `pins` are points that were pinned for it, `acted` when that was done, `told` when the event was sent. `drill` is
    empty (none), `wanted`, or what came of it.
    """

    __tablename__ = "anomalies"
    __table_args__ = (Index("anomalies_by_vm", "repository", "vm", "at"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    repository: Mapped[str] = mapped_column(String(32))
    vm: Mapped[str] = mapped_column(String(255))
    kind: Mapped[str] = mapped_column(String(16))
    disks: Mapped[str] = mapped_column(Text)
    began: Mapped[float] = mapped_column(Double)
    at: Mapped[float] = mapped_column(Double)
    last: Mapped[float] = mapped_column(Double)
    score: Mapped[float] = mapped_column(Double)
    text: Mapped[str] = mapped_column(Text)
    noted: Mapped[float] = mapped_column(Double)
    pins: Mapped[list[str]] = mapped_column(JSON, default_factory=list)
    full: Mapped[bool] = mapped_column(default=False)
    drill: Mapped[str] = mapped_column(Text, default="")
    acted: Mapped[float | None] = mapped_column(Double, default=None)
    told: Mapped[float | None] = mapped_column(Double, default=None)
    judged: Mapped[float | None] = mapped_column(Double, default=None)
    verdict: Mapped[str] = mapped_column(Text, default="")


class TierUse(Base, kw_only=True):
    """How full a tier was at an instant; `free` is unknown where a tier has no end."""

    __tablename__ = "tier_use"

    repository: Mapped[str] = mapped_column(String(32), primary_key=True)
    tier: Mapped[str] = mapped_column(String(64), primary_key=True)
    time: Mapped[float] = mapped_column(Double, primary_key=True)
    used: Mapped[int] = mapped_column(Bytes)
    free: Mapped[int | None] = mapped_column(Bytes, default=None)


class JudgedSegments(Base, kw_only=True):
    """Until when runs had begun whose segments were compared with their disks."""

    __tablename__ = "judged_segments"

    repository: Mapped[str] = mapped_column(String(32), primary_key=True)
    until: Mapped[float] = mapped_column(Double)
