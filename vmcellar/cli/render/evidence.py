"""What is known of a point from verifications and drills."""

from __future__ import annotations

from collections.abc import Iterable
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


def proof_text(proofs: Iterable[Evidence | str]) -> Group:
    """A line for each record, and one for each check that it failed."""
    lines: list[Text] = []
    for each in proofs:
        lines += [Text(f"evidence that cannot be read: {each}", style="red")] if isinstance(each, str) else _one(each)
    return Group(*(lines or [Text("never proven: `vmcellar drill POINT` restores and boots it", style="yellow")]))


def _one(record: Evidence) -> list[Text]:
    took = f", restored and running in {seconds_text(record.rto)}" if record.rto is not None else ""
    text = f"last {record.kind}: {record.verdict}, {time_text(_iso(record.time))} on {record.host}{took}"
    lines = [Text(text, style="green" if record.verdict == "passed" else "bold red")]
    lines += [
        Text(f"  {check.name}: expected {check.expected}, found {check.found}", style="red") for check in record.failed
    ]
    return [*lines, *(Text(f"  expectation not met: {name}", style="red") for name in record.expectations)]


def _iso(time: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(time, UTC).isoformat(timespec="seconds")
