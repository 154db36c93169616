"""The frame that every analysis works on."""

from __future__ import annotations

import pytest

from vmcellar.analysis.history import HISTORY, conform, empty_history


def test_an_empty_history_has_every_column_in_its_dtype() -> None:
    assert {name: str(dtype) for name, dtype in empty_history().dtypes.items()} == dict(HISTORY)


def test_conform_names_the_columns_that_are_missing() -> None:
    with pytest.raises(KeyError, match="bytes_new, tier"):
        conform(empty_history().drop(columns=["tier", "bytes_new"]))
