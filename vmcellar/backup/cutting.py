"""Chunks that begin where the content says so, so that equal files share chunks wherever they lie on their disks.

What was read, at most 1 MiB at a time, is cut before each block of 4 KiB whose first 64 bytes hash to one value in 24:
file systems lay files on multiples of 4 KiB, so systems that were installed apart have the same cuts inside the same
files. A cut is no secret and no promise: readers rely on the map alone (docs/repository-format.md, section 7).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

BLOCK = 4096
ONE_IN = 24
"""Blocks between two cuts, on average: 96 KiB. Of 128 KiB a twentieth more is stored, of 64 KiB a twentieth less, in
half more rows.
"""
MOST = 32
"""Cuts in one buffer: what has more repeats itself, and stays whole. Ordinary content has 11 in 1 MiB, never so many;
without a limit 4 KiB pieces of a pattern would make maps and memory grow sixteenfold.
"""

_WORDS = 8
_MIX = np.uint64(0x9E3779B97F4A7C15)
_FOLD = np.uint64(29)
_TOP = np.uint64(40)


def cut(data: memoryview) -> list[memoryview]:
    """The pieces of `data`, at most `MOST` + 1, in order; each but the last is some blocks long.

    A block of zeroes begins none.
    """
    heads = np.frombuffer(data, np.uint8, len(data) // BLOCK * BLOCK).reshape(-1, BLOCK)[:, : _WORDS * 8]
    words = np.ascontiguousarray(heads).view("<u8")
    mixed = np.zeros(len(words), np.uint64)
    for word in words.T:
        mixed = (mixed ^ word) * _MIX
        mixed ^= mixed >> _FOLD
    begins = np.flatnonzero((mixed >> _TOP) % np.uint64(ONE_IN) == 1) * BLOCK
    if len(begins) > MOST:
        return [data]
    edges = [0, *(begin for begin in begins.tolist() if begin), len(data)]
    return [data[begin:end] for begin, end in pairwise(edges)]
