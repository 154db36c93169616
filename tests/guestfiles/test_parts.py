"""Where a file system's device lies on the disks, by the appliance's words: all of it, or no answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcellar.guestfiles.parts import Device, Part, parse

TWO = "volume 300\n0 100 diska 2048\n100 200 diskb 0\n"


def test_a_partition_and_a_volume_of_two_parts() -> None:
    assert parse("plain 8 \n") is None
    assert parse("plain 300\n0 300 diska 2048\n") == Device((Part(0, 300 * 512, "diska", 2048 * 512),), volume=False)
    parts = (Part(0, 51200, "diska", 2048 * 512), Part(51200, 102400, "diskb", 0))
    assert parse(TWO) == Device(parts, volume=True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "volume 300\n",  # thin, encrypted, a snapshot: no part is linear
        "volume 300\n0 100 diska 2048\n",  # the rest is not, or on a RAID
        "volume 300\n100 200 diskb 0\n",
        "volume 300\n0 100 diska 2048\n200 100 diskb 0\n",
        "volume 300\n100 200 diskb 0\n0 100 diska 2048\n",
        "volume 200\n" + TWO.split("\n", 1)[1],
        "volume 300\n0 100 diska 2048\n0 100 diskb 2048\n100 200 diskb 0\n",  # two disks with one label's name
        "volume 300\n0 0 diska 2048\n0 300 diskb 0\n",
        "dmsetup: not found\n" + TWO,
        TWO + "what\n",
        TWO.replace("volume", "raid"),
    ],
)
def test_what_does_not_account_for_the_whole_device_is_no_answer(text: str) -> None:
    assert parse(text) is None


def test_what_is_beyond_the_end_is_nowhere() -> None:
    device = parse(TWO)
    assert device is not None
    assert device.on_disks([(0, 300 * 512)]) == [("diska", 2048 * 512, 51200), ("diskb", 0, 102400)]
    assert device.on_disks([(0, 4096), (300 * 512 - 4096, 4097)]) == []


@given(
    st.lists(st.tuples(st.integers(1, 40), st.sampled_from("ab"), st.integers(0, 99)), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 240), st.integers(1, 60)), max_size=5),
)
def test_each_byte_is_where_its_part_says(drawn: list[tuple[int, str, int]], wanted: list[tuple[int, int]]) -> None:
    lines, places = [], list[tuple[str, int]]()
    for length, label, start in drawn:
        lines.append(f"{len(places)} {length} disk{label} {start}")
        places += [(f"disk{label}", start + at) for at in range(length)]
    device = parse("\n".join([f"volume {len(places)}", *lines]) + "\n")
    assert device is not None
    extents = [(at * 512, length * 512) for at, length in wanted]
    told = [
        (label, (offset + at) // 512) for label, offset, size in device.on_disks(extents) for at in range(0, size, 512)
    ]
    inside = all(at + length <= len(places) for at, length in wanted)
    assert told == ([place for at, length in wanted for place in places[at : at + length]] if inside else [])
