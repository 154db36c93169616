"""The history as Parquet files, written and read a part after the other: a year of many VMs fits into no memory."""

from __future__ import annotations

from collections import Counter
from contextlib import closing, contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from vmcellar.analysis import history as tables
from vmcellar.analysis.history import PART, conform, groups
from vmcellar.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    from vmcellar.catalog.catalog import Catalog

    Read = Callable[[Catalog], Iterator[pd.DataFrame]]

_ROWS = 100_000
"""Rows of a file that are read at once."""
_WORD = pa.dictionary(pa.int32(), pa.string())


def export(catalog: Catalog, directory: Path) -> dict[str, int]:
    """Write each table as `directory/<table>.parquet`; rows per table. Files that are there are replaced, each once its
    new one is whole.

    The folder is made. OSError when it cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, read in _TABLES.items():
        unfinished = directory / f".{name}.parquet.new"
        try:
            with closing(_parts(catalog, name, read)) as parts:
                written[name] = _write(unfinished, parts)
            unfinished.replace(directory / f"{name}.parquet")
        finally:
            unfinished.unlink(missing_ok=True)
    return written


def _pieces(table: str) -> Read:
    return lambda catalog: tables.pieces(catalog, table)


_TABLES: dict[str, Read | None] = {
    "history": lambda catalog: tables.in_parts(catalog, PART),
    "runs": lambda catalog: tables.runs_in_parts(catalog, PART),
    "stages": _pieces("stages"),
    "segments": _pieces("segments"),
    "points": _pieces("points"),
    "evidence": _pieces("evidence"),
    "schedule_changes": None,
    "storage_advice": None,
    "anomalies": None,
    "tier_use": None,
}
"""How each is read in parts; None where it does not grow with every run."""


def _parts(catalog: Catalog, table: str, read: Read | None) -> Generator[pd.DataFrame]:
    """Those with rows, or one without any, which names the columns."""
    there = False
    for part in () if read is None else read(catalog):
        if len(part):
            there = True
            yield part
    if not there:
        yield getattr(tables, table)(catalog)


def _write(file: Path, parts: Iterator[pd.DataFrame]) -> int:
    """A part makes a row group; rows."""
    first = next(parts)
    schema = _schema(first)
    rows = 0
    with parquet.ParquetWriter(file, schema) as writer:
        for part in chain([first], parts):
            writer.write_table(pa.Table.from_pandas(part, preserve_index=False).cast(schema))
            rows += len(part)
    return rows


def _schema(first: pd.DataFrame) -> pa.Schema:
    """The columns by the first rows: what is never known in these may be told in later ones, and is a text then, as all
    numbers have their dtype already.
    """
    found = pa.Schema.from_pandas(first, preserve_index=False)
    for number, column in enumerate(found):
        if pa.types.is_dictionary(column.type):
            found = found.set(number, column.with_type(_WORD))
        elif pa.types.is_null(column.type) and len(first):
            found = found.set(number, column.with_type(pa.string()))
    return found


def read_history(file: Path, weeks: int | None = None) -> pd.DataFrame:
    """A history that `export` wrote, or its last weeks up to its last start (the rest is not kept in memory).

    UsageError when the file is none.
    """
    with _named(file), file.open("rb") as opened:
        if weeks is None:
            return _frame(parquet.read_table(opened))
        last = pd.to_datetime(parquet.read_table(opened, columns=["started"])["started"].to_pandas()).max()
        since = None if pd.isna(last) else [("started", ">=", last - pd.Timedelta(weeks=weeks))]
        return _frame(parquet.read_table(opened, filters=since))


def last_start(file: Path) -> pd.Timestamp:
    """When the last run of a history began that `export` wrote; UsageError when the file is none or has no run."""
    with _named(file), parquet.ParquetFile(file) as opened:
        _frame(opened.schema_arrow.empty_table())
        batches = opened.iter_batches(_ROWS, columns=["started"])
        last: list[pd.Timestamp] = [pd.to_datetime(batch["started"].to_pandas(), utc=True).max() for batch in batches]
        if not (known := [moment for moment in last if not pd.isna(moment)]):
            raise ValueError("it tells of no run")
        return max(known)


def history_in_parts(file: Path, rows: int = PART) -> Iterator[pd.DataFrame]:
    """All of `read_history`, some VMs after the others, about so many rows at once, each VM in one part alone.

    Each part reads the row groups that hold its VMs: about once in all where the file is sorted by VM, as `export`
    sorts it. UsageError when the file is none.
    """
    with _named(file), parquet.ParquetFile(file) as opened:
        _frame(opened.schema_arrow.empty_table())
        held = [_counts(opened, number) for number in range(opened.num_row_groups)]
        counts = sorted(sum(held, Counter[Any]()).items(), key=lambda item: (item[0] is None, item[0]))
        for vms in groups(counts, rows):
            yield _frame(
                _of_vms(opened, vms, [number for number, own in enumerate(held) if not own.keys().isdisjoint(vms)])
            )


def _counts(opened: parquet.ParquetFile, group: int) -> Counter[Any]:
    """Rows of each VM in a row group."""
    found: Counter[Any] = Counter()
    for batch in opened.iter_batches(_ROWS, row_groups=[group], columns=["vm"]):
        for each in batch["vm"].cast(pa.string()).value_counts().to_pylist():
            found[each["values"]] += each["counts"]
    return found


def _of_vms(opened: parquet.ParquetFile, vms: list[str], within: list[int]) -> pa.Table:
    wanted = pa.array(vms, pa.string())
    batches = [
        batch.filter(pc.is_in(batch["vm"].cast(pa.string()), wanted))
        for batch in opened.iter_batches(_ROWS, row_groups=within)
    ]
    return pa.Table.from_batches(batches)


def _frame(table: pa.Table) -> pd.DataFrame:
    """Its words by name, whatever order a file has them in: histories are sorted by them."""
    found = table.to_pandas(split_blocks=True, self_destruct=True)
    words = {name: found[name].cat for name in found.columns if isinstance(found[name].dtype, pd.CategoricalDtype)}
    return conform(found.assign(**{name: one.set_categories(sorted(one.categories)) for name, one in words.items()}))


@contextmanager
def _named(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        why = error.args[0] if isinstance(error, KeyError) else getattr(error, "strerror", None) or error
        raise UsageError(f"{file}: {why}", hint="`vmcellar catalog export DIR` writes one") from error
