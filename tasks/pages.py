"""Reports as Markdown, from what flows and the catalog know: a job, a restore, a piece of evidence, the fleet.

Pure: nothing is asked and nothing published here. `vmcellar.backup.report` has the one of a backup.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vmcellar.backup.model import PointSummary
from vmcellar.backup.report import size_text, span_text
from vmcellar.backup.selection import OffVm

if TYPE_CHECKING:
    from vmcellar.catalog.conditions import Condition
    from vmcellar.repository.evidence import Check, Evidence
    from vmcellar.restore.report import RestoreReport

Result = PointSummary | OffVm | BaseException
"""What became of one VM of a job."""

Standing = Mapping[str, Sequence[Mapping[str, Any]]]
"""Where all stands, as `vmcellar.catalog.metrics.standing` gives it."""

ROWS_MOST = 200
"""Lines of a table that are shown: more is for the command's --json."""
SCREEN_MOST = 64 << 10
"""Bytes of a screenshot that a page takes at most."""


def job_page(job: str, results: Mapping[str, Result], links: Mapping[str, str]) -> str:
    """A row per VM, those that make the job red first, then those that are off. `links` are VMs' names as links."""
    rows = sorted(results.items(), key=lambda item: (isinstance(item[1], PointSummary), isinstance(item[1], OffVm)))
    new = sum(isinstance(result, PointSummary) for result in results.values())
    title = f"# {job or 'backup'}: {new} of {len(results)} VMs have a new verified point"
    table = _table(("VM", "result", "read", "stored"), [(links.get(vm, vm), *_job_row(result)) for vm, result in rows])
    return "\n".join([title, "", *table])


def _job_row(result: Result) -> tuple[str, str, str]:
    if isinstance(result, PointSummary):
        point = f"{result.kind} point `{result.id}`"
        return point, size_text(result.bytes_read), size_text(result.bytes_stored)
    if isinstance(result, OffVm):
        return str(result), "", ""
    return f"**failed**: {str(result).strip() or type(result).__name__}", "", ""


def restore_page(report: RestoreReport, defined: str, host: str) -> str:
    """What came back, where it lies, what was lost; `defined` is the new VM's name, if there is one."""
    lost = report.lost[:ROWS_MOST]
    beside = ", ".join(sorted(report.artifacts))
    rows = [(disk.target, size_text(disk.size), size_text(disk.written), f"`{disk.path}`") for disk in report.disks]
    lines = [
        f"# {report.vm}: point `{report.point}` restored{f', lost ranges: {len(report.lost)}' if lost else ''}",
        "",
        *(f"- **lost**: {each.target}, {each.length} bytes at {each.offset}: {each.reason}" for each in lost),
        f"- on the host {host}, in `{report.directory}`{f'; beside the disks: {beside}' if beside else ''}",
        *([f"- defined as the VM {defined}: `virsh start {defined}` starts it"] if defined else []),
        f"- read {size_text(report.read)} from the tiers in {report.seconds:.1f} s",
        "",
        *_table(("disk", "size", "data", "image"), rows),
    ]
    return "\n".join(lines)


def evidence_page(record: Evidence) -> str:
    """What was found and how long it took; a screenshot that is not too large stands in it."""
    lines = [
        f"# {record.vm}: {record.kind} {'passed' if record.verdict == 'passed' else '**failed**'}",
        "",
        f"- point `{record.point}`, looked at {_when(record.time)} on the host {record.host}",
        *_objective("restored, running and checked in", record.rto, record.rto_limit),
        *_objective("the point was the newest verified one, and its age", record.rpo, record.rpo_limit),
        *(f"- **not met**: {each}" for each in record.expectations),
        "",
        "## Checks",
        "",
        *_table(("check", "expected", "found", "met"), [_check_row(check) for check in record.checks]),
        "",
        "## Time",
        "",
        *_table(("phase", "seconds"), [(name, f"{seconds:.2f}") for name, seconds in record.seconds.items()]),
    ]
    if record.screenshot and len(record.screenshot) <= SCREEN_MOST:
        image = base64.b64encode(record.screenshot).decode()
        lines += ["", "## Screen", "", f"![the guest's screen](data:image/png;base64,{image})"]
    return "\n".join(lines)


def _objective(words: str, found: float | None, limit: float | None) -> list[str]:
    if found is None:
        return []
    return [f"- {words} {span_text(found)}{'' if limit is None else f'; the policy allows {span_text(limit)}'}"]


def _check_row(check: Check) -> tuple[str, ...]:
    met = "yes" if check.ok else "**no**" if check.critical else "no (a warning)"
    return check.name, check.expected, check.found, met


def fleet_page(
    standing: Standing,
    found: Sequence[Condition],
    rpo: Mapping[str, float | None],
    now: float,
    links: Mapping[str, str],
) -> str:
    """Every VM and tier, what is wrong first; `rpo` is asked for each VM, or None, in seconds, as `now` is. `links` are
    VMs' names as links.
    """
    verified = {row["vm"]: row["verified"] for row in standing["points"]}
    proofs = {row["vm"]: row["passed"] for row in standing["evidence"] if row["passed"] is not None}
    newest = standing["newest"]
    covered = sum(verified.get(row["vm"]) is not None for row in newest)
    wrong = {0: "nothing is wrong", 1: "1 thing is wrong"}.get(len(found), f"{len(found)} things are wrong")
    rows = []
    for row in _shown(standing):
        at = verified.get(row["vm"])
        run = f"{_moment(row['started'])}, {'a point' if row['ok'] else '**failed**'}"
        age = _age(None if at is None else now - at, rpo.get(row["vm"]))
        proof = _moment(proofs.get(row["vm"]))
        vm = links.get(row["vm"], row["vm"])
        rows.append((vm, run, _moment(at), age, proof, size_text(row["bytes_stored"] or 0)))
    # Few words: Prefect's page gives a table 830 of 1400 pixels, and hides the bar by which the rest could be seen.
    columns = ("VM", "newest run (UTC)", "newest verified (UTC)", "age, of RPO", "good proof (UTC)", "stored")
    lines = [
        f"# {covered} of {len(newest)} VMs have a verified point, {wrong}",
        "",
        *(f"- **{each.severity}**: {each.text}" for each in found),
        "",
        *_table(columns, rows),
        *(["", f"and {len(newest) - ROWS_MOST} more"] if len(newest) > ROWS_MOST else []),
        "",
        *_tiers(standing),
    ]
    return "\n".join(lines)


def fleet_vms(standing: Standing) -> list[str]:
    """The VMs that the page of the fleet shows."""
    return [row["vm"] for row in _shown(standing)]


def _shown(standing: Standing) -> list[Mapping[str, Any]]:
    return sorted(standing["newest"], key=lambda row: (row["ok"], row["vm"]))[:ROWS_MOST]


def _tiers(standing: Standing) -> list[str]:
    rows = standing["tiers"]
    if not rows:
        return ["How full the tiers are is told once the flow `upkeep-repository` has looked at them."]
    free = ["no end" if row["free"] is None else size_text(row["free"]) for row in rows]
    sizes = [(row["tier"], size_text(row["used"]), left) for row, left in zip(rows, free, strict=True)]
    return _table(("tier", "used", "free"), sizes)


def _age(age: float | None, rpo: float | None) -> str:
    if age is None:
        return "**none**"
    if rpo is None:
        return f"{span_text(age)}, none asked"
    return f"{span_text(age)} of {span_text(rpo)}" if age <= rpo else f"**{span_text(age)}** of {span_text(rpo)}"


def _when(time: float) -> str:
    return f"{_moment(time)} UTC"


def _moment(time: float | None) -> str:
    return "never" if time is None else f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Cells hold Markdown; what would end a cell or a row does not."""
    return [
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(map(_cell, row))} |" for row in rows),
    ]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
