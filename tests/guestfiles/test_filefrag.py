"""What of filefrag's words counts: only what is certain, as those bytes are to be left out of a backup."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcellar.guestfiles.filefrag import FilePlaces, parse

MD5 = "d41d8cd98f00b204e9800998ecf8427e"
BLOCK = 4096
HEAD = " ext:     logical_offset:        physical_offset: length:   expected: flags:"


def words(rows: list[str], blocks: int = 1536, size: int | None = None) -> str:
    size = blocks * BLOCK if size is None else size
    return "\n".join(
        [
            f"=FILE {MD5}  -",
            "Filesystem type is: ef53",
            f"File size of /proc/self/fd/0 is {size} ({blocks} blocks of {BLOCK} bytes)",
            *([HEAD] if rows else []),
            *rows,
            f"/proc/self/fd/0: {len(rows)} extents found",
            "=END\n",
        ]
    )


def row(number: int, first: int, place: int, length: int, flags: str = "", expected: str = "") -> str:
    return (
        f"{number:4d}:{first:9d}..{first + length - 1:8d}: {place:10d}..{place + length - 1:11d}:"
        f" {length:6d}: {expected:>10s} {flags}"
    )


def test_what_e2fsprogs_1_47_prints_of_two_files() -> None:
    text = (
        f"=FILE {MD5}  -\nFilesystem type is: ef53\n"
        "File size of /proc/self/fd/0 is 6291456 (1536 blocks of 4096 bytes)\n"
        " ext:     logical_offset:        physical_offset: length:   expected: flags:\n"
        "   0:        0..    1023:      34816..     35839:   1024:            \n"
        "   1:     1024..    1535:      40960..     41471:    512:      35840: last,eof\n"
        "/proc/self/fd/0: 2 extents found\n=END\n"
        f"=FILE {MD5}  -\nFilesystem type is: ef53\nFile size of /proc/self/fd/0 is 0 (0 blocks of 4096 bytes)\n"
        "/proc/self/fd/0: 0 extents found\n=END\n=DONE\n"
    )
    assert parse(text) == ([FilePlaces(MD5, ((34816 * BLOCK, 1024 * BLOCK), (40960 * BLOCK, 512 * BLOCK)))], 0)


MANY = "9" * 5000


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("4096 bytes", "0 bytes"),
        ("4096 bytes", f"{MANY} bytes"),
        ("(1536", f"({MANY}"),
        ("0:        0.", f"0: {MANY}."),
    ],
)
def test_numbers_that_no_kernel_tells_are_no_error(was: str, now: str) -> None:
    whole = words([row(0, 0, 7, 1536)])
    assert was in whole
    assert parse(whole.replace(was, now) + "=DONE\n") == ([], 1)


@pytest.mark.parametrize(
    "flags",
    [
        "shared",
        "last,shared,eof",
        "encoded,encrypted",
        "inline",
        "not_aligned",
        "unknown_loc,delalloc",
        "0x4000",
        "new",
    ],
)
def test_a_file_with_an_extent_that_is_shared_or_strange_is_kept(flags: str) -> None:
    rows = [row(0, 0, 100, 8), row(1, 8, 300, 8, flags, "108:")]
    assert parse(words(rows, 16) + "=DONE\n") == ([], 1)


def test_what_was_allocated_and_never_written_is_not_the_files_data() -> None:
    rows = [row(0, 0, 100, 8), row(1, 8, 108, 8, "unwritten"), row(2, 16, 116, 8, "last,eof")]
    assert parse(words(rows, 24) + "=DONE\n")[0] == [
        FilePlaces(MD5, ((100 * BLOCK, 8 * BLOCK), (116 * BLOCK, 8 * BLOCK)))
    ]


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([row(0, 0, 100, 17, "last")], id="beyond the end, as fs-verity's tree"),
        pytest.param([row(0, 0, 0, 16, "last,eof")], id="at no place"),
        pytest.param([row(0, 4, 100, 12, "last,eof")], id="a hole first"),
        pytest.param([row(0, 0, 100, 8), row(1, 4, 200, 8)], id="crossing"),
        pytest.param([row(1, 0, 100, 8)], id="one lacks"),
        pytest.param([row(0, 0, 100, 16).replace(" 16:", " 12:")], id="lengths that differ"),
        pytest.param(["what is this"], id="other words"),
    ],
)
def test_what_does_not_add_up_is_kept(rows: list[str]) -> None:
    assert parse(words(rows, 16) + "=DONE\n") == ([], 1)


def test_the_last_block_counts_whole_and_the_size_may_end_in_it() -> None:
    assert parse(words([row(0, 0, 100, 16, "last,eof")], 16, 15 * BLOCK + 1) + "=DONE\n")[1] == 0


@given(st.integers(0, 10_000), st.booleans())
def test_words_that_are_cut_give_whole_files_or_none(cut: int, noise: bool) -> None:
    one = words([row(0, 0, 100, 16, "last,eof")], 16)
    two = words([row(0, 0, 500, 8), row(1, 8, 900, 8, "last,eof", "508:")], 16)
    text = one + two + "=DONE\n"
    whole, _ = parse(text)
    found, doubtful = parse(text[: cut % len(text)] + ("\nnoise" if noise else ""))
    assert found == whole[: len(found)]
    assert doubtful


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 50), st.integers(1, 9000), st.booleans()), min_size=1, max_size=9
    )
)
def test_every_extent_of_written_data_is_told_where_it_lies(parts: list[tuple[int, int, int, bool]]) -> None:
    rows, expected, at = [], [], 0
    for number, (hole, length, place, written) in enumerate(parts):
        at += hole if number else 0
        rows.append(row(number, at, place, length, "" if written or not number else "unwritten"))
        if written or not number:
            expected.append((place * BLOCK, length * BLOCK))
        at += length
    found, doubtful = parse(words(rows, at) + "=DONE\n")
    assert ([each.extents for each in found], doubtful) == ([tuple(expected)], 0)
