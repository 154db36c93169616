"""Great Expectations as this project uses it: loaded late, quiet, without reports of use, one judgement at a time.

Loading takes seconds, so whoever judges imports this module's functions freely and pays at the first call. The context
belongs to the process; a lock holds its users apart.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

lock = threading.RLock()
"""Held by whoever uses the library."""


def library() -> Any:
    """The library, without its reports of use, and without its own deprecation warnings while it loads."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import great_expectations as gx  # noqa: PLC0415  (several seconds)
    return gx


def quiet(context: Any) -> Any:
    """The same context, without progress bars."""
    from great_expectations.data_context.types.base import ProgressBarsConfig  # noqa: PLC0415

    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    return context


def outcomes(table: pd.DataFrame, suite: Mapping[str, Any], index: Sequence[str] = ()) -> list[Any]:
    """What the library says of each expectation of a suite; rows that miss one are named by the columns `index`."""
    gx, how = library(), {"result_format": "COMPLETE", **({"unexpected_index_column_names": index} if index else {})}
    with lock:
        asset = _context().data_sources.add_or_update_pandas("tables").add_dataframe_asset(suite["name"])
        batch = asset.add_batch_definition_whole_dataframe("rows").get_batch({"dataframe": table})
        return list(batch.validate(gx.ExpectationSuite(**suite), result_format=how).results)


@cache
def _context() -> Any:
    return quiet(library().get_context(mode="ephemeral"))
