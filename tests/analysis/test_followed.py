"""Advice on storing is remembered, and what really came of it is told once it is followed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tests.analysis.test_fill import daily
from tests.backup.world import make_engine
from vmcellar.analysis import followed
from vmcellar.analysis.capacity import TierUse
from vmcellar.analysis.followed import Sight, StorageGain, note, storage_gains
from vmcellar.analysis.storing import REPOSITORY, Proposal
from vmcellar.config.model import Config
from vmcellar.engine import Engine

GB = 10**9
DAY = 86400.0
COMPRESSION = Proposal("compression", "web", "zstd:auto", "zstd:3", "20 % less", 0.8)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = make_engine(tmp_path)
    yield made
    made.repository.close()


def history(*shares: float) -> pd.DataFrame:
    """A run a day; each stores this share of what is new."""
    frame = daily(np.array(shares) * GB)
    return frame.assign(bytes_new=GB)


def sight(engine: Engine, frame: pd.DataFrame, compression: str = "zstd:auto") -> Sight:
    """At the end of a history, with the compression of the job that has all VMs."""
    document = engine.config.model_dump(mode="json", include={"state", "scratch"})
    job = {"name": "all", "compression": compression}
    config = Config.model_validate({**document, "tiers": {"hot": "hot"}, "backups": [job]})
    return Sight(engine.repository, config, frame, frame["started"].max().timestamp() + 60)


def only(found: list[StorageGain]) -> StorageGain:
    (one,) = found
    return one


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        (0.4, "as predicted"),
        (0.45, "50% of the predicted gain"),
        (0.5, "no gain came: take it back"),
    ],
)
def test_another_compression_is_judged_by_the_runs_since_it_is_there(
    engine: Engine, after: float, verdict: str
) -> None:
    before = [0.5] * 20
    assert note(engine.catalog, [COMPRESSION], sight(engine, history(*before))) == 1
    assert note(engine.catalog, [COMPRESSION], sight(engine, history(*before))) == 0, "once"
    told = only(storage_gains(engine.catalog, sight(engine, history(*before))))
    assert (told.verdict, told.came, told.before) == ("not followed", None, 0.5)
    assert told.predicted == pytest.approx(0.4)
    told = only(storage_gains(engine.catalog, sight(engine, history(*before), "zstd:3")))
    assert told.verdict == "too early: 0 of 10 runs since it was seen to be followed"
    told = only(storage_gains(engine.catalog, sight(engine, history(*before, *[after] * 12), "zstd:3")))
    assert told.came == pytest.approx(after)
    assert told.verdict == verdict


def test_no_compression_where_nothing_helps_must_not_store_more(engine: Engine) -> None:
    proposal = replace(COMPRESSION, advised="none", factor=1.02)
    before = [0.98] * 20
    note(engine.catalog, [proposal], sight(engine, history(*before)))
    storage_gains(engine.catalog, sight(engine, history(*before), "none"))
    fine, more = (
        only(storage_gains(engine.catalog, sight(engine, history(*before, *[share] * 12), "none")))
        for share in (1.0, 1.2)
    )
    assert fine.verdict == "as predicted"
    assert more.verdict == "more is stored than predicted: take it back"


def test_consolidation_and_tiers_are_judged_by_what_is_there(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, cost = 1000, 0.1
    monkeypatch.setattr(followed, "consolidate", lambda *_, **__: SimpleNamespace(reads_before=reads))
    monkeypatch.setattr(followed, "tiers_now", lambda *_: [TierUse("hot", GB, None, cost)])
    frame = history(*[0.5] * 20)
    now = sight(engine, frame)
    given = [
        Proposal("consolidation", REPOSITORY, "", "vmcellar consolidate", "", 0.1),
        Proposal("tier rule", REPOSITORY, "hot, cold from 90 d", "hot", "", 0.5),
        Proposal("chunk size", "web", "", "", "no gain"),
    ]
    assert note(engine.catalog, given, now) == 2
    first, second = storage_gains(engine.catalog, now)
    assert (first.about, first.verdict, first.before, first.predicted) == ("consolidation", "not followed", 1000, 100)
    assert (second.about, second.verdict) == ("tier rule", "no gain came: take it back"), "hot alone it is already"
    reads, cost = 120, 0.04
    first, second = storage_gains(engine.catalog, now)
    assert (first.came, first.verdict) == (120, "as predicted")
    assert second.came == pytest.approx(0.04)
    assert second.verdict == "as predicted"


def test_what_cannot_be_measured_yet_is_not_noted(engine: Engine) -> None:
    assert note(engine.catalog, [COMPRESSION], sight(engine, history(0.5, 0.5))) == 0
    assert storage_gains(engine.catalog, sight(engine, history(0.5, 0.5))) == []
