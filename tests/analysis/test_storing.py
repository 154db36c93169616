"""Advice on storing: what is measured on the VM's own data, and an honest `no gain` where there is none."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.backup.world import make_engine
from tests.repository.writing import back_up
from vmcellar.analysis.history import empty_history
from vmcellar.analysis.sample import TUNING, generate
from vmcellar.analysis.storing import Measured, Proposal, compression, proposals, sample_of
from vmcellar.engine import Engine

MIB = 1 << 20


def clock_of(seconds: float = 1.0) -> Iterator[float]:
    """CPU time that grows alike for whatever is measured."""
    return itertools.count(0.0, seconds)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = make_engine(tmp_path)
    yield made
    made.repository.close()


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Two VMs, `text` and `random`, with a month of runs."""
    settings = replace(
        TUNING, seed=3, vms=2, days=40, classes=("office",), every_hours=(6,), newcomers=0.0, leavers=0.0
    )
    found = generate(replace(settings, outage_share=0.0)).frame
    return found.assign(vm=found["vm"].astype("object").map({"office-0000": "text", "office-0001": "random"}))


def text_of(megabyte: int) -> bytes:
    words = np.array([b"alpha ", b"beta ", b"gamma ", b"delta ", b"error ", b"17 ", b"2026 ", b"done\n"], dtype=object)
    return b"".join(np.random.default_rng(megabyte).choice(words, MIB // 4))[:MIB]


def advice(engine: Engine, frame: pd.DataFrame) -> dict[tuple[str, str], Proposal]:
    now = frame["started"].max().timestamp() if len(frame) else 0.0
    ticks = clock_of()
    found = proposals(engine.repository, engine.config, frame, now, lambda: next(ticks))
    return {(one.subject, one.what): one for one in found}


def test_it_is_measured_on_each_vms_own_data(engine: Engine, frame: pd.DataFrame) -> None:
    with ThreadPoolExecutor(2) as pool:
        text = back_up(engine.repository, pool, [(at * MIB, text_of(at)) for at in range(4)], 8 * MIB, vm="text")
        noise = [(at * MIB, np.random.default_rng(at).bytes(MIB)) for at in range(4)]
        back_up(engine.repository, pool, noise, 8 * MIB, vm="random")
    found = advice(engine, frame)
    assert sum(len(part) for part in sample_of(engine.repository, text)) == 4
    assert found["compression", "text"].advised.startswith("zstd:")
    assert "less stored a day" in found["compression", "text"].gain
    assert found["compression", "random"].advised == "none"
    assert "cannot be compressed" in found["compression", "random"].gain
    assert "0% of the sample's 64 KiB pieces" in found["chunk size", "random"].gain
    assert all(found["chunk size", vm].advised == "" for vm in ("text", "random")), "the format fixes it"
    assert found["consolidation", "the repository"].gain.startswith("no gain")
    assert "two tiers with a price" in found["tier rule", "the repository"].gain


def test_without_points_or_history_nothing_is_advised(engine: Engine, frame: pd.DataFrame) -> None:
    for rows in (frame, empty_history()):
        found = advice(engine, rows)
        assert {subject for subject, _ in found} == {"consolidation", "tier rule"}
        assert not any(one.advised for one in found.values())


def test_a_level_must_save_something_and_may_not_cost_too_much() -> None:
    levels = [Measured("none", 1.0, 1e-10), Measured("zstd:auto", 2.0, 1e-9), Measured("zstd:12", 2.2, 30e-9)]
    stays = compression("web", "zstd:auto", levels, 1e9)
    assert stays.advised == ""
    assert stays.gain == "no gain: zstd:12 would store 9% less for 30.0 times the CPU time"
    better = compression("web", "zstd:auto", [*levels, Measured("zstd:3", 2.5, 3e-9)], 1e9)
    assert (better.advised, better.gain) == ("zstd:3", "95.4 MiB less stored a day (20%) for 3.0 times the CPU time")


def test_old_bytes_go_to_a_cheaper_tier_where_that_pays(engine: Engine, frame: pd.DataFrame, tmp_path: Path) -> None:
    now = frame["started"].max().timestamp()
    with ThreadPoolExecutor(2) as pool:
        back_up(engine.repository, pool, [(0, b"1" * MIB)], 8 * MIB, vm="text", time=now - 400 * 86400)
    tiers = {
        "hot": {"storage": str(tmp_path / "hot"), "prices": {"gb_month": 0.1}},
        "cold": {"storage": str(tmp_path / "cold"), "prices": {"gb_month": 0.001}},
    }
    document = {**engine.config.model_dump(mode="json", include={"state", "scratch"}), "tiers": tiers}
    engine.config = type(engine.config).model_validate(document)
    told = advice(engine, frame)["tier rule", "the repository"]
    assert (told.today, told.advised) == ("hot", "hot, cold from 7 d")
    assert "less a month" in told.gain
