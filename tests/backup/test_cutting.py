"""Cuts that follow the content: the pieces are what was read, and equal files give equal pieces wherever they lie."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults.cellar import Cellar, stand_ins
from tests.restore.test_restore import damage, flip_one
from vmcellar.backup import cutting, pipeline
from vmcellar.backup.cutting import BLOCK, cut
from vmcellar.backup.model import BackupRequest, PointSummary
from vmcellar.repository.scrub import verify_all

MIB = 1 << 20


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.integers(1, 40 * BLOCK), st.integers(0, 9))
def test_the_pieces_are_what_was_read(length: int, seed: int) -> None:
    data = random.Random(seed).randbytes(length)
    pieces = cut(memoryview(data))
    assert b"".join(pieces) == data
    assert all(pieces)
    assert all(len(piece) % BLOCK == 0 for piece in pieces[:-1])


def test_zeroes_are_one_piece() -> None:
    assert len(cut(memoryview(bytes(MIB)))) == 1


@pytest.mark.parametrize("pattern", [b"\x13", b"\x57", b"\xf0", b"0123456789abcdef"])
def test_a_pattern_that_repeats_is_not_cut_to_pieces(pattern: bytes) -> None:
    assert len(cut(memoryview(pattern * (MIB // len(pattern))))) == 1


def test_a_file_that_lies_elsewhere_has_the_same_pieces() -> None:
    dice = random.Random(3)
    file = dice.randbytes(3 * MIB // 4)
    here = memoryview(file + dice.randbytes(MIB // 4))
    there = memoryview(dice.randbytes(7 * BLOCK) + file + dice.randbytes(MIB // 4 - 7 * BLOCK))
    common = {bytes(piece) for piece in cut(here)} & {bytes(piece) for piece in cut(there)}
    assert sum(map(len, common)) > MIB // 3


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cellar:
    for module, name, value in stand_ins():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(cutting, "ONE_IN", 4)  # disks here are small
    made = Cellar(tmp_path)
    made.make()
    return made


def back_up(cellar: Cellar) -> PointSummary:
    engine = cellar.engine()
    try:
        return pipeline.run(engine, BackupRequest("web", chunks="content"))
    finally:
        engine.cpu.shutdown()
        engine.repository.close()


def most_rows(cellar: Cellar) -> int:
    """Extents of the largest map."""
    repository = cellar.open()
    try:
        disks = [disk for point in repository.points() for disk in point.disks]
        return max(sum(len(rows) for rows in repository.map(disk).rows()) for disk in disks)
    finally:
        repository.close()


@pytest.mark.parametrize("direct", [0, 32 * MIB])
def test_full_and_incrementals_restore_and_heal(small: Cellar, monkeypatch: pytest.MonkeyPatch, direct: int) -> None:
    """Chunks that begin anywhere are overwritten in part, found damaged, and read again."""
    landing = small.config.landing.model_copy(update={"direct": direct})
    monkeypatch.setattr(Cellar, "config", small.config.model_copy(update={"landing": landing}))
    first = small.noting("web", 1, lambda: back_up(small))
    assert first.kind == "full"
    assert most_rows(small) > 20
    second = small.noting("web", 2, lambda: back_up(small))
    assert second.kind == "incremental"
    small.check()
    packs = [path for path in (small.hot / "data").rglob("*") if path.is_file()]
    damage(max(packs, key=lambda path: path.stat().st_size), flip_one)
    repository = small.open()
    assert not verify_all(repository, deep=True).ok
    repository.close()
    third = small.noting("web", 2, lambda: back_up(small))
    repository = small.open()
    small.check_point(repository, repository.point(third.id))
    repository.close()
