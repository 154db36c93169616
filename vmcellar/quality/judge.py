"""Great Expectations over evidence: each suite of `suites/` is held against its table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmcellar import expectations
from vmcellar.quality import frames
from vmcellar.repository.evidence import Evidence

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Result:
    """One expectation over a table: on how many `rows`, and the points that miss it.

    Only a `critical` one speaks against a point.
    """

    suite: str
    reason: str
    severity: str
    rows: int
    missed: tuple[str, ...]


@cache
def suite(name: str) -> dict[str, Any]:
    """A suite of the project, as Great Expectations keeps it."""
    found: dict[str, Any] = json.loads(files("vmcellar.quality").joinpath(f"suites/{name}.json").read_text())
    return found


def judge(record: Evidence) -> Evidence:
    """The evidence with the critical expectations that it does not meet: any of them makes its verdict "failed"."""
    unmet = tuple(
        f"{result.suite}: {result.reason}"
        for result in results([record])
        if result.missed and result.severity == "critical"
    )
    verdict = "failed" if unmet else record.verdict
    return replace(record, expectations=unmet, verdict=verdict)


def results(records: Sequence[Evidence]) -> list[Result]:
    """Every expectation of every suite that is about any of these records, with the points that miss it."""
    found: list[Result] = []
    for name in frames.TABLES:
        table = frames.frame(name, records)
        if len(table):
            found += (_result(name, each, table) for each in expectations.outcomes(table, suite(name), ["point"]))
    return found


def publish(records: Iterable[Evidence], folder: Path) -> Path | None:
    """Write Data Docs about these records below `folder`, beside those of earlier runs; the index page.

    None when there is nothing to tell. The pages load their fonts from the network: without one they look plain.
    """
    every = list(records)
    tables = {name: frames.frame(name, every) for name in frames.TABLES}
    told = {name: table for name, table in tables.items() if len(table)}
    with expectations.lock:
        for name, table in told.items():
            _document(name, table, folder)
    return folder / "gx/uncommitted/data_docs/local_site/index.html" if told else None


def _document(name: str, table: pd.DataFrame, folder: Path) -> None:
    gx = expectations.library()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    context = expectations.quiet(gx.get_context(mode="file", project_root_dir=folder))
    source = context.data_sources.add_or_update_pandas(f"evidence of {name}")
    batches = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("run")
    rules = context.suites.add_or_update(gx.ExpectationSuite(**suite(name)))
    checked = gx.ValidationDefinition(name=name, data=batches, suite=rules)
    checkpoint = gx.Checkpoint(
        name=name,
        validation_definitions=[context.validation_definitions.add_or_update(checked)],
        actions=[gx.checkpoint.UpdateDataDocsAction(name="docs")],
    )
    context.checkpoints.add_or_update(checkpoint).run(batch_parameters={"dataframe": table})


def _result(name: str, outcome: Any, table: pd.DataFrame) -> Result:
    meta = outcome.expectation_config.meta
    missed: tuple[str, ...] = ()
    if not outcome.success:
        rows = outcome.result.get("unexpected_index_list") or [{"point": point} for point in table["point"]]
        missed = tuple(dict.fromkeys(str(row["point"]) for row in rows))
    return Result(name, meta["reason"], meta["severity"], len(table), missed)
