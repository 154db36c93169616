"""What is known of a point from verifications and drills."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from vmcellar.cli.render.text import seconds_text, time_text
from vmcellar.errors import IntegrityError
from vmcellar.repository import evidence
from vmcellar.repository.evidence import Evidence, Standing
from vmcellar.tiers.base import NotFoundError

if TYPE_CHECKING:
    from vmcellar.repository.repository import Repository


def standing_json(standing: Standing | None) -> list[dict[str, Any]]:
    """The newest evidence of each kind, newest first."""
    return [
        {"kind": each.kind, "verdict": each.verdict, "time": each.when.isoformat(), "key": each.key}
        for each in (standing.newest if standing else ())
    ]


def last_proofs(repository: Repository, standing: Standing) -> list[Evidence | str]:
    """The newest record of each kind, newest first; in words what is wrong with one that cannot be read."""
    found: list[Evidence | str] = []
    for each in standing.newest:
        try:
            found.append(evidence.read(repository, each))
        except (IntegrityError, NotFoundError) as error:
            found.append(f"{each.key}: {error.message}")
    return found


def evidence_json(record: Evidence) -> dict[str, Any]:
    """The record; of a screenshot only how many bytes it has."""
    text = json.dumps(asdict(replace(record, screenshot=b"")) | {"screenshot": len(record.screenshot)})
    plain: dict[str, Any] = json.loads(text)
    return plain


def proof_text(proofs: Iterable[Evidence | str], *, every: bool = False) -> Group:
    """A line for each record, and one for each check that it failed; with `every` for all checks and phases."""
    lines: list[Text] = []
    for each in proofs:
        if isinstance(each, str):
            lines.append(Text(f"evidence that cannot be read: {each}", style="red"))
        else:
            lines += _one(each, every)
    return Group(*(lines or [Text("never proven: `vmcellar drill POINT` restores and boots it", style="yellow")]))


def _one(record: Evidence, every: bool) -> list[Text]:
    took = f", restored and running in {seconds_text(record.rto)}" if record.rto is not None else ""
    text = f"last {record.kind}: {record.verdict}, {time_text(_iso(record.time))} on {record.host}{took}"
    lines = [Text(text, style="green" if record.verdict == "passed" else "bold red")]
    if every:
        phases = ", ".join(f"{name} {seconds_text(seconds)}" for name, seconds in record.seconds.items())
        lines += [Text(f"  {phases}"), *(Text(f"  {c.name}: {c.found}", style="green") for c in record.checks if c.ok)]
    lines += [
        Text(f"  {check.name}: expected {check.expected}, found {check.found}", style="red")
        for check in (record.checks if every else record.failed)
        if not check.ok
    ]
    return [*lines, *(Text(f"  expectation not met: {name}", style="red") for name in record.expectations)]


def _iso(time: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(time, UTC).isoformat(timespec="seconds")
