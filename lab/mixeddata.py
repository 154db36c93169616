"""Streams of data as disks hold it: files of this system and log-like text, the same for the same seed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

Random = np.random.Generator
LINE = 112
WORDS = (
    *(
        "connection accepted from",
        "session opened for user",
        "request served in",
        "retry after time-out of",
        "GET /api/items",
    ),
    *(
        "POST /api/orders",
        "worker finished job",
        "cache miss for key",
        "checkpoint complete, buffers",
        "closed by remote peer",
    ),
)
LEVELS = ("INFO", "INFO", "INFO", "DEBUG", "WARN", "ERROR")


class Stream:
    """Take any number of bytes from an endless iterator of pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def take(self, length: int) -> bytes:
        """The next `length` bytes."""
        parts, have = [self._rest], len(self._rest)
        while have < length:
            parts.append(next(self._pieces))
            have += len(parts[-1])
        data = b"".join(parts)
        self._rest = data[length:]
        return data[:length]


def system_files(random: Random) -> Iterator[bytes]:
    """The files below /usr/bin and /usr/lib, whole, in a random order; when all are used, log text goes on instead."""
    paths = sorted(_regular_files(Path("/usr/bin"))) + sorted(_regular_files(Path("/usr/lib")))
    for index in random.permutation(len(paths)):
        try:
            yield Path(paths[index]).read_bytes()
        except OSError:  # gone since it was listed
            continue
    yield from log_text(random)


def log_text(random: Random) -> Iterator[bytes]:
    """Endless log lines: a few thousand sentences that come again with other times, process ids and request ids."""
    pool = _sentences(random, 4096)
    start = 1_700_000_000
    while True:
        lines = pool[random.integers(len(pool), size=8192)]
        times = start + np.cumsum(random.integers(0, 3, size=len(lines)))
        start = int(times[-1])
        _put_digits(lines, 0, times, 10)
        _put_digits(lines, 17, random.integers(300, 9000, size=len(lines)), 5)
        _put_digits(lines, LINE - 14, random.integers(0, 10**12, size=len(lines)), 12)
        yield lines.tobytes()


def _regular_files(top: Path) -> Iterator[str]:
    for folder, _folders, names in os.walk(top):
        for name in names:
            path = f"{folder}/{name}"
            if not os.path.islink(path) and os.path.isfile(path):  # noqa: PTH113, PTH114 - tens of thousands of files
                yield path


def _sentences(random: Random, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    lines = []
    for number in random.integers(1 << 30, size=count):
        words = f"{WORDS[number % len(WORDS)]} 10.{number % 7}.{number % 199}.{number % 251} size={number % 65521}"
        text = f"{'':10} host{number % 9:02d} {'':5} {LEVELS[number % len(LEVELS)]:5} {words}"
        lines.append(f"{text:{LINE - 18}.{LINE - 18}} id={'':12} \n".encode())
    return np.frombuffer(b"".join(lines), dtype=np.uint8).reshape(count, LINE)


def _put_digits(
    lines: np.ndarray[tuple[int, int], np.dtype[np.uint8]],
    column: int,
    values: np.ndarray[tuple[int], np.dtype[np.int64]],
    digits: int,
) -> None:
    for place in range(digits):
        lines[:, column + digits - 1 - place] = 48 + (values // 10**place) % 10
