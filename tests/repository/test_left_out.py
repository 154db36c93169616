"""The record of what a point leaves out."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcellar.cli.leftout import tell_left_out
from vmcellar.errors import IntegrityError
from vmcellar.repository import left_out
from vmcellar.repository.commit import SMALL_ARTIFACT
from vmcellar.repository.layout import GRID
from vmcellar.repository.left_out import LeftOut, decode, encode, marked, of_ranges, unmarked

LOGS = ("/var/log",)


@given(st.dictionaries(st.sampled_from(["vda", "sdb"]), st.sets(st.integers(0, (1 << 44) - 1), min_size=1, max_size=9)))
def test_a_record_gives_back_every_range_of_every_disk(clusters: dict[str, set[int]]) -> None:
    ranges = {target: [(cluster * GRID, GRID) for cluster in sorted(each)] for target, each in clusters.items()}
    found = decode(encode(of_ranges(LOGS, ranges)))
    assert found.paths == LOGS
    assert {target: found.ranges(target) for target in found.disks} == ranges
    assert found.bytes == sum(len(each) for each in clusters.values()) * GRID
    assert found.ranges("vdz") == []


def test_of_many_ranges_the_largest_are_kept_in_a_record_that_every_host_can_read() -> None:
    dice = random.Random(5)
    sizes = [dice.randrange(1, 1 << 20) for _ in range(9000)]
    ranges = [(((1 << 43) + number * (1 << 21)) * GRID, size * GRID) for number, size in enumerate(sizes)]
    data = encode(of_ranges(LOGS, {"vda": ranges}))
    assert len(data) < SMALL_ARTIFACT
    kept = [length // GRID for _, length in decode(data).ranges("vda")]
    assert sorted(kept, reverse=True) == sorted(sizes, reverse=True)[: len(kept)]
    assert len(kept) > 2000


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b'{"paths":["/a"],"format":2}',
        b'{"paths":["/a"],"disks":{"vda":[[5,2],[6,1]]},"format":1}',
        b'{"paths":["/a"],"disks":{"vda":[[5,0]]},"format":1}',
        b'{"paths":["/a"],"disks":{"vda":[[-1,2]]},"format":1}',
        b'{"paths":["/a"],"disks":{"vda":[[1,2,3]]},"format":1}',
        b'{"paths":["/a"],"more":1,"format":1}',
    ],
)
def test_a_record_that_is_not_one_is_refused(text: bytes) -> None:
    with pytest.raises(IntegrityError, match="left-out"):
        decode(text)


def test_a_mark_is_put_on_once_and_taken_off() -> None:
    assert marked("serial=a;inode=5") == marked(marked("serial=a;inode=5")) != "serial=a;inode=5"
    assert unmarked(marked("serial=a;inode=5")) == unmarked("serial=a;inode=5") == "serial=a;inode=5"
    assert LeftOut(()).bytes == 0
    assert left_out.MARK.startswith(";")


def test_whoever_brings_a_point_back_is_told_by_its_disks_marks(capsys: pytest.CaptureFixture[str]) -> None:
    disks = (SimpleNamespace(target="vda", identity=marked("a")), SimpleNamespace(target="vdb", identity="b"))
    point: Any = SimpleNamespace(id="p1", disks=disks)
    tell_left_out(point)
    said = capsys.readouterr().err
    assert said.startswith("warning: point p1: vda: content of some paths was left out by the job's `exclude: path:`")
    assert "zeroes for content" in said
    tell_left_out(SimpleNamespace(id="p1", disks=disks[1:]))  # type: ignore[arg-type]  # no whole point
    assert capsys.readouterr().err == ""
