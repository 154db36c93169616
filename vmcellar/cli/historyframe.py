"""Where the analysis commands take their history from: the catalog, a Parquet file, or a made-up sample."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmcellar.cli.output import note
from vmcellar.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

HistoryOption = Annotated[
    Path | None, typer.Option("--history", metavar="FILE", help="A history as Parquet, as the catalog exports it.")
]
SampleOption = Annotated[
    int | None, typer.Option("--sample", metavar="SEED", help="A made-up history, to see what the command shows.")
]
SAMPLE_VMS = 18
SAMPLE_DAYS = 120


def read_history(history: Path | None, sample: int | None, vm: str | None = None) -> pd.DataFrame:
    """The history that the options name, of one VM or all; UsageError for a file that is none or an unknown VM."""
    if (history is None) == (sample is None):
        raise UsageError(
            "the catalog does not feed this command yet: name a history",
            hint="--history FILE reads a Parquet file in the form of docs/analysis.md, --sample 1 shows a made-up one",
        )
    frame = _sample(sample) if sample is not None else _from_file(Path(str(history)))
    if vm is None:
        return frame
    found = frame[frame["vm"] == vm]
    if found.empty:
        raise UsageError(f"{vm} is not in this history", hint=f"it holds {_some(frame)}")
    return found


def _some(frame: pd.DataFrame, most: int = 5) -> str:
    names = sorted(str(name) for name in frame["vm"].unique())
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "no VM") + more


def _sample(seed: int) -> pd.DataFrame:
    from dataclasses import replace

    from vmcellar.analysis.sample import TUNING, generate

    note(f"a made-up history: {SAMPLE_VMS} VMs over {SAMPLE_DAYS} days, seed {seed}")
    settings = replace(TUNING, seed=seed, vms=SAMPLE_VMS, days=SAMPLE_DAYS, trouble_share=0.25)
    return generate(settings).frame


def _from_file(path: Path) -> pd.DataFrame:
    import pandas as pd

    from vmcellar.analysis.history import conform

    try:
        return conform(pd.read_parquet(path))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise UsageError(f"{path} is not a history: {error.args[0] if error.args else error}") from None
