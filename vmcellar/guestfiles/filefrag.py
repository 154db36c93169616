"""Where the bytes of files lie on their device, out of the words of `filefrag -v /proc/self/fd/0`.

A file is its standard input, so that no name of a guest's gets into its words. On any doubt a file counts for nothing:
whoever asks wants to leave these bytes out of a backup. Source: filefrag(8) of e2fsprogs 1.42 to 1.47, fiemap.rst.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

FILE, END, DONE = "=FILE", "=END", "=DONE"
"""Lines around each file's words: `=FILE MD5 -` (of its first PROBE bytes), the words, `=END`; `=DONE` comes last."""
PROBE = 4096

_N = r"(\d{1,19})"  # what a kernel counts; int() refuses thousands of digits
_SIZE = re.compile(rf"File size of /proc/self/fd/0 is {_N} \({_N} blocks? of ([1-9]\d{{0,8}}) bytes\)")
_ROW = re.compile(rf" *{_N}: +{_N}\.\. *{_N}: +{_N}\.\. *{_N}: +{_N}:(?: +\d+:)? *([a-z_,]*)")
_HEADS = (re.compile(r"Filesystem type is: [0-9a-f]+"), re.compile(r" ext: +logical_offset: .*flags:"))
_LAST = re.compile(r"/proc/self/fd/0: \d+ extents? found")
_HARMLESS = frozenset({"", "last", "eof", "merged"})
_UNWRITTEN = "unwritten"
_MD5 = re.compile(FILE + r" ([0-9a-f]{32}) +-")


class _Row(NamedTuple):
    """One extent, in blocks: where in the file, where on the device."""

    number: int
    first: int
    last: int
    place: int
    place_last: int
    length: int
    flags: str


@dataclass(frozen=True, slots=True)
class FilePlaces:
    """One file: `extents` are (offset on its device, length) in bytes, none shared, all of written data within the
    file; the first one holds the file's first bytes, of which `md5` is.
    """

    md5: str
    extents: tuple[tuple[int, int], ...]


def parse(text: str) -> tuple[list[FilePlaces], int]:
    """The files whose places are certain, and how many are not; one more is not when the end is missing."""
    found: list[FilePlaces] = []
    doubtful = 0
    for md5, words in _files(text):
        places = _places(words) if md5 else None
        if places is None:
            doubtful += 1
        elif places:
            found.append(FilePlaces(md5, places))
    return found, doubtful + (text.rstrip("\n").rpartition("\n")[2] != DONE)


def _files(text: str) -> Iterator[tuple[str, list[str]]]:
    """(MD5, the words about the file) of each; no MD5 where they are not whole."""
    md5, words, inside = "", list[str](), False
    for line in text.split("\n"):
        if line.startswith(FILE):
            if inside:
                yield "", words
            match = _MD5.fullmatch(line)
            md5, words, inside = match[1] if match else "", [], True
        elif line == END and inside:
            yield md5, words
            inside = False
        elif inside:
            words.append(line)
    if inside:
        yield "", words


def _places(words: list[str]) -> tuple[tuple[int, int], ...] | None:
    """None on any doubt; empty for a file without data of its own."""
    if len(words) < 3 or not _LAST.fullmatch(words[-1]):
        return None
    size = _SIZE.fullmatch(words[1])
    if size is None or not _HEADS[0].fullmatch(words[0]):
        return None
    rows = words[3:-1]
    if not rows:
        return () if len(words) == 3 or _HEADS[1].fullmatch(words[2]) else None
    matches = [_ROW.fullmatch(row) for row in rows]
    if not _HEADS[1].fullmatch(words[2]) or any(match is None for match in matches):
        return None
    return _checked([_row(match) for match in matches if match], int(size[1]), int(size[3]))


def _row(match: re.Match[str]) -> _Row:
    number, first, last, place, place_last, length = map(int, match.groups()[:6])
    return _Row(number, first, last, place, place_last, length, match[7])


def _checked(rows: list[_Row], size: int, block: int) -> tuple[tuple[int, int], ...] | None:
    """Extents of written data in bytes; None when one is shared, strange, beyond the end, or none begins the file."""
    found = []
    begun, reached = False, 0
    for number, row in enumerate(rows):
        names = set(row.flags.split(","))
        if row.number != number or row.first < reached or row.length < 1 or names - _HARMLESS - {_UNWRITTEN}:
            return None
        if row.last - row.first + 1 != row.length or row.place_last - row.place + 1 != row.length:
            return None
        reached = row.last + 1
        if _UNWRITTEN in names:
            continue
        if reached > -(-size // block) or not row.place:
            return None
        begun = begun or (row.first == 0 and row.length * block >= PROBE)
        found.append((row.place * block, row.length * block))
    return tuple(found) if begun or not found else None
