"""The history of backups as pandas frames, read-only; the one shape that every analysis works on.

`history` has one row per VM, disk and run, sorted by VM, disk and start. Sizes are bytes, times are seconds, instants
are UTC. Where a figure is not known (a run that failed, a point that was read back by `catalog rebuild`) floats are NaN
and byte counts are 0.

| column | what |
|---|---|
| `run_id` | the run; unique together with `disk` |
| `vm`, `disk` | the VM and the disk's target; `disk` is empty for a run that failed before its disks were known |
| `started` | the instant that the run holds, or when a run without one began |
| `kind` | `full`, `incremental`, or `differential` (not what changed since the run before: in no forecast) |
| `ok` | whether a verified point came of it |
| `bytes_size` | the disk's size |
| `bytes_read` | what the source gave |
| `bytes_changed` | what the point records as changed, with what became zero; for a full, all of its data |
| `bytes_zero` | of what was looked at, what is zero, with holes |
| `bytes_new` | what the repository did not have, before compression |
| `bytes_stored` | what that took in packs |
| `ratio` | `bytes_new / bytes_stored`; NaN when nothing was stored |
| `seconds` | from the instant to the commit, of the whole run; the same in each of its rows |
| `seconds_held`, `seconds_frozen` | how long the backup job existed and the guest was frozen; of the whole run |
| `entropy` | of what was new, in bits per byte, from samples of its chunks; NaN if nothing was new or it is not known |
| `dedup_hits` | chunks that were read and that the repository, or the same run, had |
| `tier` | where the packs were placed |
| `segments_agree` | whether what is known of the disk's segments adds up to it, as far as that was looked at |

`runs` has one row per run, with the RPO that its point reached.
`stages` has one row per run, disk and stage (`disk` is empty where only the sum over disks is known), `segments` one
per run, disk and segment (of runs that were noted themselves), `points` one per point that is or was in the repository,
`evidence` one per verification or drill; `schedule_changes`, `storage_advice`, `anomalies`, `tier_use`.
Each is one read transaction, so what it gives is of one moment. Those that grow with every run come some VMs after the
others as well (`in_parts`, `runs_in_parts`, `pieces`), as a year of many VMs fits into no memory.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pandas as pd
from sqlalchemy import bindparam, text

from vmcellar.analysis.objectives import exposure

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sqlalchemy import Connection, TextClause

    from vmcellar.catalog.catalog import Catalog

DAY = 86400.0
HISTORY: Mapping[str, str] = {
    "run_id": "object",
    "vm": "category",
    "disk": "category",
    "started": "datetime64[ns, UTC]",
    "kind": "category",
    "ok": "bool",
    "bytes_size": "int64",
    "bytes_read": "int64",
    "bytes_changed": "int64",
    "bytes_zero": "int64",
    "bytes_new": "int64",
    "bytes_stored": "int64",
    "ratio": "float64",
    "seconds": "float64",
    "seconds_held": "float64",
    "seconds_frozen": "float64",
    "entropy": "float64",
    "dedup_hits": "int64",
    "tier": "category",
    "segments_agree": "bool",
}
"""Column to dtype; the order is the frame's."""
USUAL = {"segments_agree": True}
"""What columns hold that a history need not have, as older exports have none."""


def empty_history() -> pd.DataFrame:
    """A history without a run, with every column in its dtype."""
    return pd.DataFrame({name: pd.Series([], dtype=dtype) for name, dtype in HISTORY.items()})


def conform(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with exactly the columns of a history, in order and dtype, sorted by VM, disk and start.

    KeyError that names the columns which are missing; pandas' own errors for values that are not of the dtype.
    """
    missing = [name for name in HISTORY if name not in frame.columns and name not in USUAL]
    if missing:
        raise KeyError(f"not a history: it has no column {', '.join(missing)}")
    usual = {name: value for name, value in USUAL.items() if name not in frame.columns}
    whole = frame.assign(**usual) if usual else frame
    chosen = whole if list(whole.columns) == list(HISTORY) else whole[list(HISTORY)]
    typed = chosen.astype(dict(HISTORY), copy=False)
    if _in_order(typed):
        return typed.set_axis(pd.RangeIndex(len(typed)), axis=0)
    return typed.sort_values(["vm", "disk", "started"], kind="stable", ignore_index=True)


def _in_order(frame: pd.DataFrame) -> bool:
    """Whether a history is sorted already: sorting copies all of it, which millions of rows need not pay twice."""
    vm, disk = (frame[name].cat.codes.to_numpy().astype("int64") for name in ("vm", "disk"))
    started = frame["started"].to_numpy(dtype="datetime64[ns]").view("int64")
    same_vm, same_disk = vm[1:] == vm[:-1], disk[1:] == disk[:-1]
    later_disk = (disk[1:] > disk[:-1]) | (same_disk & (started[1:] >= started[:-1]))
    return bool(((vm[1:] > vm[:-1]) | (same_vm & later_disk)).all())


_ROWS = 100_000
"""Rows that are fetched at once: a history of millions never lies in memory as Python objects."""

_HISTORY = """
SELECT runs.id AS run_id, vm, coalesce(target, '') AS disk, started, kind, outcome = 'done' AS ok,
  coalesce(size, 0) AS bytes_size, coalesce(bytes_read, 0) AS bytes_read, coalesce(bytes_changed, 0) AS bytes_changed,
  coalesce(bytes_zero, 0) AS bytes_zero, coalesce(bytes_new, 0) AS bytes_new,
  coalesce(bytes_stored, 0) AS bytes_stored, finished - started AS seconds,
  held_seconds AS seconds_held, freeze_seconds AS seconds_frozen, entropy, coalesce(chunks_known, 0) AS dedup_hits,
  coalesce(tier, '') AS tier, coalesce(segments_agree, true) AS segments_agree
FROM runs LEFT JOIN run_disks ON run_id = runs.id
WHERE repository = :repository AND started >= :since AND (:vm = '' OR vm = :vm)
"""
_OF_VM = "(:vm = '' OR vm = :vm)"
_VMS = "SELECT vm, count(*) FROM {} WHERE repository = :repository GROUP BY vm"
WEEKS = 25
"""What forecasts look back on, and a week more: analyses load no older history."""
_HELD = """
SELECT vm, kind = 'incremental' AS goes, CAST(time AS BIGINT) / 86400 AS day, sum(bytes_stored) AS size
FROM points WHERE repository = :repository AND time < :before AND gone IS NULL AND bytes_stored > 0 GROUP BY vm, 2, 3
"""
_RUNS = """
SELECT id AS run_id, vm, job, kind, reason, started, finished, outcome, outcome = 'done' AS ok, error,
  point_id AS point, parent, consistency, finished - started AS seconds, held_seconds AS seconds_held,
  freeze_seconds AS seconds_frozen, recorded_by
FROM runs WHERE repository = :repository AND started >= :since AND (:vm = '' OR vm = :vm) ORDER BY vm, started, id
"""
_STAGES = """
SELECT run_id, vm, target AS disk, started, stage, seconds, bytes, retries FROM runs JOIN stages ON run_id = runs.id
WHERE repository = :repository AND started >= :since AND (:vm = '' OR vm = :vm) ORDER BY vm, started, disk, stage
"""
_SEGMENTS = """
SELECT run_id, vm, target AS disk, number AS segment, started, bytes_read, bytes_zero, bytes_changed, bytes_known,
  bytes_new, bytes_stored, chunks_known, export_seconds, compress_seconds, place_seconds, verify_seconds, entropy, tier,
  retries
FROM runs JOIN segments ON run_id = runs.id
WHERE repository = :repository AND started >= :since AND (:vm = '' OR vm = :vm) ORDER BY vm, started, disk, segment
"""
_POINTS = """
SELECT id AS point, vm, time, run_id, kind, parent, consistency, verified, disks, bytes_size, bytes_stored, gone
FROM points WHERE repository = :repository AND time >= :since AND (:vm = '' OR vm = :vm) ORDER BY vm, time
"""
_PROVED = """
SELECT id AS point, points.vm AS vm, time, run_id, kind, parent, consistency, verified, disks, bytes_size, bytes_stored,
  gone
FROM points
LEFT JOIN (SELECT vm, max(time) AS newest FROM points WHERE repository = :repository GROUP BY vm) AS last
  ON last.vm = points.vm AND newest = time
WHERE repository = :repository AND (newest IS NOT NULL OR id IN (SELECT point_id FROM evidence))
ORDER BY points.vm, time
"""
_THERE = _PROVED.replace("newest IS NOT NULL", "newest IS NOT NULL OR gone IS NULL")
_EVIDENCE = """
SELECT point_id AS point, vm, time, kind, ok, seconds, rto_seconds, detail
FROM evidence WHERE repository = :repository AND time >= :since AND (:vm = '' OR vm = :vm) ORDER BY vm, time
"""
_CHANGES = """
SELECT vm, time, before, after, reason, by, applied
FROM schedule_changes WHERE repository = :repository AND time >= :since AND (:vm = '' OR vm = :vm) ORDER BY vm, time
"""
_ADVICE = """
SELECT about, vm, time, today, advised, figure, predicted, followed
FROM storage_advice WHERE repository = :repository AND time >= :since AND (:vm = '' OR vm = :vm) ORDER BY vm, time
"""
_ANOMALIES = """
SELECT vm, kind, disks, began, at, last, score, text, noted, "full" AS asked_full, drill, acted, told, judged, verdict
FROM anomalies WHERE repository = :repository AND at >= :since AND (:vm = '' OR vm = :vm) ORDER BY vm, at
"""
_TIERS = """
SELECT tier, time, used AS bytes_used, free AS bytes_free
FROM tier_use WHERE repository = :repository AND time >= :since ORDER BY tier, time
"""
_FLOATS = ("seconds", "seconds_held", "seconds_frozen", "entropy", "rto_seconds", "bytes", "bytes_free", "retries")
_BOOLEANS = ("ok", "verified", "applied", "asked_full", "segments_agree")
_WORDS = tuple(name for name, dtype in HISTORY.items() if dtype == "category")
_CATEGORIES = dict.fromkeys(_WORDS, "category")
_PIECES = {
    "stages": (_STAGES, "runs"),
    "segments": (_SEGMENTS, "runs"),
    "points": (_POINTS, "points"),
    "evidence": (_EVIDENCE, "evidence"),
}
"""Queries, and the table that tells how much there is of each VM."""
_INSTANTS = (
    "started", "finished", "time", "gone", "followed", "began", "at", "last", "noted", "acted", "told", "judged",
)  # fmt: skip


def history(catalog: Catalog, vm: str = "", since: datetime | None = None) -> pd.DataFrame:
    """One row per VM, disk and run; of one VM, or of runs since an instant, if asked."""
    return _with_ratio(_read(catalog, _HISTORY, vm, since, _WORDS))


PART = 500_000
"""Runs that are analysed at once where all of a history is needed."""
_VMS_AT_ONCE = 1000
"""VMs in one query: SQLite takes some thousand values."""


def in_parts(catalog: Catalog, rows: int = PART) -> Iterator[pd.DataFrame]:
    """All of `history`, some VMs after the others, about so many rows at once, each VM in one part alone.

    One read transaction, which lasts until the last part is taken.
    """
    for found in _by_vms(catalog, _HISTORY, rows):
        yield _with_ratio(_joined([part.astype(_CATEGORIES) for part in found], _WORDS))


def runs_in_parts(catalog: Catalog, rows: int = PART) -> Iterator[pd.DataFrame]:
    """All of `runs`, as `in_parts`."""
    for found in _by_vms(catalog, _RUNS, rows):
        yield _with_exposure(pd.concat(found, ignore_index=True))


def pieces(catalog: Catalog, table: str) -> Iterator[pd.DataFrame]:
    """All of `stages`, `segments`, `points` or `evidence` by VM, in pieces; as `in_parts`."""
    query, of = _PIECES[table]
    for found in _by_vms(catalog, query, PART, of):
        yield from found


def _by_vms(catalog: Catalog, query: str, rows: int, of: str = "runs") -> Iterator[Iterator[pd.DataFrame]]:
    """What a query gives for VMs that have so many rows in the table `of` together, then for the next ones, by name;
    each is to be taken before the next.
    """
    own = {"repository": catalog.repository}
    with catalog.reading() as connection:
        counts = [(vm, count) for vm, count in connection.execute(text(_VMS.format(of)).bindparams(**own))]
        for vms in groups(sorted(counts), rows):
            wanted = text(query.replace(_OF_VM, "vm IN :vms")).bindparams(
                bindparam("vms", vms, expanding=True), since=0.0, **own
            )
            yield _pieces(connection, wanted)


def groups(counts: Iterable[tuple[str, int]], most: int) -> Iterator[list[str]]:
    """VMs that have so many rows together, or one that has more by itself."""
    group: list[str] = []
    rows = 0
    for vm, count in counts:
        if group and (rows + count > most or len(group) == _VMS_AT_ONCE):
            yield group
            group, rows = [], 0
        group.append(vm)
        rows += count
    if group:
        yield group


def _with_ratio(found: pd.DataFrame) -> pd.DataFrame:
    if found.empty:
        return empty_history()
    found["ratio"] = (found["bytes_new"] / found["bytes_stored"]).where(found["bytes_stored"] > 0)
    return conform(found)


def runs(catalog: Catalog, vm: str = "", since: datetime | None = None) -> pd.DataFrame:
    """Runs, also failed ones: `run_id, vm, job, kind, reason, started, finished, outcome, ok, error, point, parent,
    consistency, seconds, seconds_held, seconds_frozen, recorded_by, superseded, rpo_reached`.

    `superseded` is when the VM's next point was committed, `rpo_reached` how many seconds old this run's was by then.
    NaT and NaN without a point, and for the newest one, which still ages.
    """
    return _with_exposure(_read(catalog, _RUNS, vm, since))


def _with_exposure(found: pd.DataFrame) -> pd.DataFrame:
    teeth = exposure(found, None).rename(columns={"until": "superseded", "worst": "rpo_reached"})
    return found.merge(teeth[["run_id", "superseded", "rpo_reached"]], on="run_id", how="left")


def stages(catalog: Catalog, vm: str = "", since: datetime | None = None) -> pd.DataFrame:
    """Seconds and bytes of each stage, and how often it was done again: `run_id, vm, disk, started, stage, seconds,
    bytes, retries` (NaN where not known).
    """
    return _read(catalog, _STAGES, vm, since)


def segments(catalog: Catalog, vm: str = "", since: datetime | None = None) -> pd.DataFrame:
    """What runs did with each segment: `run_id, vm, disk, segment, started, bytes_read, bytes_zero, bytes_changed,
    bytes_known, bytes_new, bytes_stored, chunks_known, export_seconds, compress_seconds, place_seconds,
    verify_seconds, entropy, tier, retries`. Runs that were read back from the repository have none.
    """
    return _read(catalog, _SEGMENTS, vm, since)


def points(catalog: Catalog, vm: str = "", since: datetime | None = None) -> pd.DataFrame:
    """Restore points: `point, vm, time, run_id, kind, parent, consistency, verified, disks, bytes_size, bytes_stored,
    gone` (when it was first missing; NaT while it is there).
    """
    return _read(catalog, _POINTS, vm, since)


def recent(catalog: Catalog, now: float) -> pd.DataFrame:
    """`history` of the last `WEEKS` before now (seconds since the epoch), which is all that analyses look back on."""
    return history(catalog, since=datetime.fromtimestamp(now - WEEKS * 7 * DAY, UTC))


def held_before(catalog: Catalog, now: float) -> pd.DataFrame:
    """What points that are still there stored before `recent` begins, by VM and day: `vm, day, goes, size` (bytes);
    `goes` is whether retention drops it.
    """
    values = {"repository": catalog.repository, "before": now - WEEKS * 7 * DAY}
    with catalog.reading() as connection:
        found = pd.read_sql(text(_HELD).bindparams(**values), connection)
    found["day"] = pd.to_datetime(found["day"].astype("int64"), unit="D", utc=True).astype("datetime64[ns, UTC]")
    return found.astype({"vm": "object", "goes": "bool", "size": "float64"})


def proved(catalog: Catalog) -> pd.DataFrame:
    """Those of `points` that tell how long restores take: the newest one of each VM, and all that have evidence."""
    return _read(catalog, _PROVED, "", None)


def there(catalog: Catalog) -> pd.DataFrame:
    """Those of `points` that are still there, and those of `proved`: years of others are none of a plot's."""
    return _read(catalog, _THERE, "", None)


def evidence(catalog: Catalog, vm: str = "", since: datetime | None = None) -> pd.DataFrame:
    """Verifications and drills: `point, vm, time, kind, ok, seconds, rto_seconds, detail`."""
    return _read(catalog, _EVIDENCE, vm, since)


def schedule_changes(catalog: Catalog, vm: str = "", since: datetime | None = None) -> pd.DataFrame:
    """Changes of schedules: `vm, time, before, after, reason, by, applied`."""
    return _read(catalog, _CHANGES, vm, since)


def storage_advice(catalog: Catalog, vm: str = "", since: datetime | None = None) -> pd.DataFrame:
    """Advice on storing: `about, vm, time, today, advised, figure, predicted, followed` (NaT until it is)."""
    return _read(catalog, _ADVICE, vm, since)


def anomalies(catalog: Catalog, vm: str = "", since: datetime | None = None) -> pd.DataFrame:
    """Anomalies that had consequences: `vm, kind, disks, began, at, last, score, text, noted, asked_full, drill, acted,
    told, judged, verdict` (NaT for what was not done yet).
    """
    return _read(catalog, _ANOMALIES, vm, since)


def tier_use(catalog: Catalog, since: datetime | None = None) -> pd.DataFrame:
    """How full the tiers were: `tier, time, bytes_used, bytes_free` (NaN where a tier has no end)."""
    return _read(catalog, _TIERS, "", since)


def _read(catalog: Catalog, query: str, vm: str, since: datetime | None, words: tuple[str, ...] = ()) -> pd.DataFrame:
    """`words` are columns of few values: categories from the first rows on, as millions of strings are gigabytes."""
    values: dict[str, Any] = {"repository": catalog.repository, "vm": vm}
    values["since"] = since.timestamp() if since else 0.0
    named = {name: value for name, value in values.items() if f":{name}" in query}
    return _fetched(catalog, text(query).bindparams(**named), words)


def _fetched(catalog: Catalog, statement: TextClause, words: tuple[str, ...]) -> pd.DataFrame:
    with catalog.reading() as connection:
        return _joined(
            [part.astype(dict.fromkeys(words, "category")) for part in _pieces(connection, statement)], words
        )


def _pieces(connection: Connection, statement: TextClause) -> Iterator[pd.DataFrame]:
    """What a statement gives, a part after the other; the first one is there even without rows."""
    connection.execution_options(stream_results=True, max_row_buffer=_ROWS)  # SQLite streams anyway
    return map(_typed, pd.read_sql(statement, connection, chunksize=_ROWS))


def _joined(parts: list[pd.DataFrame], words: tuple[str, ...]) -> pd.DataFrame:
    for name in words:
        every = sorted(set().union(*(part[name].cat.categories for part in parts)))
        for part in parts:
            part[name] = part[name].cat.set_categories(every)
    return pd.concat(parts, ignore_index=True)


def _typed(part: pd.DataFrame) -> pd.DataFrame:
    for name in part.columns.intersection(list(_INSTANTS)):
        moments = pd.to_datetime(part[name].astype("float64"), unit="s", utc=True)
        part[name] = moments.dt.round("us").astype("datetime64[ns, UTC]")  # a float holds no more
    for name in part.columns.intersection(list(_FLOATS)):
        part[name] = part[name].astype("float64")
    for name in part.columns.intersection(list(_BOOLEANS)):
        part[name] = part[name].astype("bool")
    return part
