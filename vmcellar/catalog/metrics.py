"""The catalog as Prometheus metrics, in base units (seconds, bytes), under names that begin with `vmcellar_`.

Everything is read from the catalog at each scrape, by one query per table, so the exporter holds no keys and needs
neither libvirt nor the repository. Values of a run are gauges of the VM's newest one: a backup is no request, and its
figures are asked for one by one. Source: Prometheus' guides on naming and on exporters.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from statistics import linear_regression
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import text

import vmcellar
from vmcellar.errors import VmcellarError
from vmcellar.policy.governing import Promise, promised

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import CursorResult

    from vmcellar.catalog.catalog import Catalog
    from vmcellar.config.jobs import BackupJob

VM = ("repository", "vm")


@dataclass(frozen=True, slots=True)
class Gauge:
    """One metric per VM: its name, help, and the column of `_NEWEST` that it shows."""

    name: str
    help: str
    column: str


NEWEST = (
    Gauge("last_run_timestamp_seconds", "When the newest run of the VM began.", "started"),
    Gauge("last_run_success", "1 when a verified point came of the VM's newest run.", "ok"),
    Gauge("last_run_duration_seconds", "From the instant to the commit.", "seconds"),
    Gauge("last_run_held_seconds", "How long the VM's backup job existed.", "held"),
    Gauge("last_run_freeze_seconds", "How long the guest's file systems were frozen.", "frozen"),
    Gauge("last_run_read_bytes", "What was read from the VM.", "bytes_read"),
    Gauge("last_run_changed_bytes", "What had changed since the point that it was measured against.", "bytes_changed"),
    Gauge("last_run_new_bytes", "What the repository did not have, before compression.", "bytes_new"),
    Gauge("last_run_stored_bytes", "What that took on the tier.", "bytes_stored"),
    Gauge("last_run_compression_ratio", "The new bytes by what they took on the tier.", "ratio"),
    Gauge("last_run_size_bytes", "The size of the VM's disks.", "bytes_size"),
)

_NEWEST = """
SELECT repository, vm, started, outcome = 'done' AS ok, error,
  (SELECT named.job FROM runs AS named WHERE named.repository = runs.repository AND named.vm = runs.vm
    AND named.job <> '' ORDER BY named.started DESC, named.id DESC LIMIT 1) AS job,
  finished - started AS seconds, held_seconds AS held,
  freeze_seconds AS frozen, CAST(sum(bytes_read) AS BIGINT) AS bytes_read,
  CAST(sum(bytes_changed) AS BIGINT) AS bytes_changed, CAST(sum(bytes_new) AS BIGINT) AS bytes_new,
  CAST(sum(bytes_stored) AS BIGINT) AS bytes_stored, CAST(sum(size) AS BIGINT) AS bytes_size, runs.id AS run_id,
  CAST(sum(bytes_new) AS DOUBLE PRECISION) / nullif(sum(bytes_stored), 0) AS ratio
FROM runs LEFT JOIN run_disks ON run_id = runs.id
WHERE NOT EXISTS (SELECT 1 FROM runs AS newer WHERE newer.repository = runs.repository AND newer.vm = runs.vm
  AND (newer.started > runs.started OR newer.started = runs.started AND newer.id > runs.id))
GROUP BY runs.id, repository, vm, started, outcome, error, finished, held_seconds, freeze_seconds
"""
_UNCOVERED = """
SELECT repository, vm, uncovered FROM runs WHERE outcome = 'done'
AND NOT EXISTS (SELECT 1 FROM runs AS newer WHERE newer.repository = runs.repository AND newer.vm = runs.vm
  AND newer.outcome = 'done' AND (newer.started > runs.started OR newer.started = runs.started AND newer.id > runs.id))
"""
_OUTCOMES = """
SELECT repository, vm, outcome, count(*) AS number, max(finished) AS finished FROM runs
GROUP BY repository, vm, outcome
"""
_STAGES = """
SELECT runs.id AS run_id, stage, sum(stages.seconds) AS seconds FROM runs JOIN stages ON stages.run_id = runs.id
GROUP BY runs.id, stage
"""
_POINTS = """
SELECT repository, vm, sum(CASE WHEN gone IS NULL THEN 1 ELSE 0 END) AS number,
  max(CASE WHEN verified AND gone IS NULL THEN time END) AS verified, min(CASE WHEN verified THEN time END) AS since
FROM points GROUP BY repository, vm HAVING sum(CASE WHEN gone IS NULL THEN 1 ELSE 0 END) > 0
"""
_EVIDENCE = """
SELECT repository, vm, kind, max(CASE WHEN ok THEN time END) AS passed, max(time) AS newest
FROM evidence GROUP BY repository, vm, kind
"""
_DOUBTED = """
SELECT repository, vm, kind, point_id FROM evidence WHERE NOT ok
AND NOT EXISTS (SELECT 1 FROM evidence AS newer WHERE newer.point_id = evidence.point_id
  AND newer.kind = evidence.kind AND newer.time > evidence.time)
AND NOT EXISTS (SELECT 1 FROM points WHERE points.id = evidence.point_id AND points.gone IS NOT NULL)
ORDER BY time
"""
_RTO = """
SELECT repository, vm, rto_seconds FROM evidence WHERE rto_seconds IS NOT NULL
  AND NOT EXISTS (SELECT 1 FROM evidence AS newer WHERE newer.repository = evidence.repository
    AND newer.vm = evidence.vm AND newer.rto_seconds IS NOT NULL AND newer.time > evidence.time)
"""
_TIERS = """
SELECT repository, tier, used, free FROM tier_use WHERE NOT EXISTS (SELECT 1 FROM tier_use AS newer
  WHERE newer.repository = tier_use.repository AND newer.tier = tier_use.tier AND newer.time > tier_use.time)
"""
_FREE = """
SELECT repository, tier, time, free FROM tier_use WHERE free IS NOT NULL AND NOT EXISTS (SELECT 1 FROM tier_use AS newer
  WHERE newer.repository = tier_use.repository AND newer.tier = tier_use.tier
    AND newer.time > tier_use.time + 30 * 86400)
ORDER BY repository, tier, time
"""
_ANOMALIES = "SELECT repository, vm, kind, text, at FROM anomalies WHERE judged IS NULL"

Row = Mapping[str, Any]


class CatalogCollector(Collector):
    """Reads the catalog when Prometheus asks. Any thread. A catalog that cannot be read is `vmcellar_up 0`."""

    def __init__(
        self, opening: Callable[[], Catalog], jobs: Sequence[BackupJob], clock: Callable[[], float] = time.time
    ) -> None:
        """`opening` is called at each scrape, so that a server which is away when this begins may come later."""
        self._opening = opening
        self._clock = clock
        self._jobs = jobs

    def collect(self) -> Iterator[Metric]:
        """All metrics of one scrape, from one state of the catalog."""
        build = GaugeMetricFamily("vmcellar_build_info", "The version that exports.", labels=["version"])
        build.add_metric([vmcellar.__version__], 1)
        yield build
        try:
            found = standing(self._opening())
        except VmcellarError:
            yield GaugeMetricFamily("vmcellar_up", "1 when the catalog could be read.", 0)
            return
        yield GaugeMetricFamily("vmcellar_up", "1 when the catalog could be read.", 1)
        promises = {row["run_id"]: promised(self._jobs, row["vm"], row["job"] or "") for row in found["newest"]}
        yield from _runs(found, promises)
        yield from _points(found)
        yield from _evidence(found)
        yield from _objectives(found, promises, self._clock())
        yield from _tiers(found)


def standing(catalog: Catalog) -> dict[str, list[Row]]:
    """Where VMs and tiers stand, in one transaction: `newest` runs, each with the newest `job` that backed its VM up,
    what the newest points leave `uncovered`, `outcomes`, `stages`, `points`, `evidence`, points that are `doubted` as
    their newest evidence of a kind speaks against them, `rto`, `tiers`, what was `free` on each in its last 30 days,
    `anomalies` that had consequences and are not judged.
    """
    queries = {
        "newest": _NEWEST,
        "uncovered": _UNCOVERED,
        "outcomes": _OUTCOMES,
        "stages": _STAGES,
        "points": _POINTS,
        "evidence": _EVIDENCE,
        "doubted": _DOUBTED,
        "rto": _RTO,
        "tiers": _TIERS,
        "free": _FREE,
        "anomalies": _ANOMALIES,
    }
    with catalog.reading() as connection:
        found = {name: _rows(connection.execute(text(query))) for name, query in queries.items()}
    return {**found, "uncovered": [{**row, "uncovered": _list(row["uncovered"])} for row in found["uncovered"]]}


def _rows(result: CursorResult[Any]) -> list[Row]:
    return [dict(row) for row in result.mappings()]


def _list(value: Any) -> list[str]:
    """A JSON column: SQLite gives its text, PostgreSQL what it holds."""
    return list(json.loads(value) if isinstance(value, str) else value)


def _gauge(
    name: str, what: str, labels: Iterable[str], values: Iterable[tuple[Sequence[str], float | None]]
) -> GaugeMetricFamily:
    """A gauge with a sample per value that is known."""
    made = GaugeMetricFamily(f"vmcellar_{name}", what, labels=list(labels))
    for names, value in values:
        if value is not None:
            made.add_metric(list(names), float(value))
    return made


def _vm(row: Row) -> list[str]:
    return [str(row["repository"])[:8], str(row["vm"])]


def _runs(found: Mapping[str, list[Row]], promises: Mapping[str, Promise]) -> Iterator[Metric]:
    newest = found["newest"]
    for gauge in NEWEST:
        yield _gauge(f"vm_{gauge.name}", gauge.help, VM, ((_vm(row), row[gauge.column]) for row in newest))
    targets = ((_vm(row), promises[row["run_id"]].rpo) for row in newest)
    yield _gauge("vm_rpo_target_seconds", "The shortest `rpo:` of the VM's jobs.", VM, targets)
    yield _gauge(
        "vm_uncovered_disks",
        "Disks that the VM's newest point does not hold, though no policy leaves them out.",
        VM,
        ((_vm(row), len(row["uncovered"])) for row in found["uncovered"]),
    )
    of_run = {row["run_id"]: _vm(row) for row in newest}
    stages = [row for row in found["stages"] if row["run_id"] in of_run]
    yield _gauge(
        "vm_last_run_stage_seconds",
        "Seconds of each stage of the newest run, summed over disks; stages overlap.",
        (*VM, "stage"),
        (([*of_run[row["run_id"]], row["stage"]], row["seconds"]) for row in stages),
    )
    outcomes = CounterMetricFamily("vmcellar_runs", "Runs by how they ended.", labels=[*VM, "outcome"])
    for row in found["outcomes"]:
        outcomes.add_metric([*_vm(row), row["outcome"]], row["number"])
    yield outcomes
    yield _gauge(
        "vm_last_success_timestamp_seconds",
        "When the newest run of the VM that made a point ended; failures since then do not move it.",
        VM,
        ((_vm(row), row["finished"]) for row in found["outcomes"] if row["outcome"] == "done"),
    )


def _points(found: Mapping[str, list[Row]]) -> Iterator[Metric]:
    rows = found["points"]
    yield _gauge("vm_points", "Restore points that are there.", VM, ((_vm(row), row["number"]) for row in rows))
    yield _gauge(
        "vm_last_verified_point_timestamp_seconds",
        "The instant of the newest verified point: now minus this is what would be lost.",
        VM,
        ((_vm(row), row["verified"]) for row in rows),
    )


def _evidence(found: Mapping[str, list[Row]]) -> Iterator[Metric]:
    rows = found["evidence"]
    doubted = {(row["repository"], row["vm"], row["kind"]) for row in found["doubted"]}
    yield _gauge(
        "vm_last_proof_timestamp_seconds",
        "When a verification or a drill of one of the VM's points last passed.",
        (*VM, "kind"),
        (([*_vm(row), row["kind"]], row["passed"]) for row in rows),
    )
    yield _gauge(
        "vm_proof_failed",
        "1 when the newest verification or drill of one of the VM's points failed.",
        (*VM, "kind"),
        (([*_vm(row), row["kind"]], (row["repository"], row["vm"], row["kind"]) in doubted) for row in rows),
    )
    rto = ((_vm(row), row["rto_seconds"]) for row in found["rto"])
    yield _gauge("vm_last_rto_seconds", "From the order to the running VM, in the last drill.", VM, rto)


def _objectives(found: Mapping[str, list[Row]], promises: Mapping[str, Promise], now: float) -> Iterator[Metric]:
    """Of each VM of which a job asks for one. One that was never verified, or drilled, does not meet it."""
    verified = {(row["repository"], row["vm"]): row["verified"] for row in found["points"]}
    measured = {(row["repository"], row["vm"]): row["rto_seconds"] for row in found["rto"]}
    made = GaugeMetricFamily(
        "vmcellar_vm_objective_met",
        "1 when the VM meets its policy: rpo by its newest verified point, rto by its last drill.",
        labels=[*VM, "objective"],
    )
    for row in found["newest"]:
        key = (row["repository"], row["vm"])
        at = verified.get(key)
        for name, limit, reached in (
            ("rpo", promises[row["run_id"]].rpo, None if at is None else now - at),
            ("rto", promises[row["run_id"]].rto, measured.get(key)),
        ):
            if limit is not None:
                made.add_metric([*_vm(row), name], float(reached is not None and reached <= limit))
    yield made


def _tiers(found: Mapping[str, list[Row]]) -> Iterator[Metric]:
    rows = found["tiers"]
    labels = ("repository", "tier")
    for name, what, column in (
        ("tier_used_bytes", "Bytes of the repository on the tier.", "used"),
        ("tier_free_bytes", "Bytes that the tier has left; absent where it has no end.", "free"),
    ):
        yield _gauge(name, what, labels, (([str(row["repository"])[:8], row["tier"]], row[column]) for row in rows))
    looks = groupby(found["free"], lambda row: (str(row["repository"])[:8], row["tier"]))
    yield _gauge(
        "tier_full_timestamp_seconds",
        "When the tier is full at the rate of its last 30 days; absent while it does not fill.",
        labels,
        ((names, _full([(row["time"], row["free"]) for row in rows])) for names, rows in looks),
    )


def _full(looks: Sequence[tuple[float, int]]) -> float | None:
    """By the line through what was free; `vmcellar capacity` has the forecast with its bounds. Oldest first."""
    newest, free = looks[-1]
    if newest == looks[0][0]:
        return None
    slope = linear_regression([when - newest for when, _ in looks], [each for _, each in looks]).slope
    return newest - free / slope if slope < 0 else None
