"""How random the new bytes of a disk are: the sign of encryption and of compression, from a few samples per segment.

A sample is the first 16 KiB of a chunk: 0.04 ms, against 0.5 ms for reading and hashing 1 MiB. Its mean over samples,
unlike the entropy of all bytes together, keeps text (4 to 5), programs (6) and what is encrypted (8) apart when a disk
changes in many places. 16 KiB of random bytes give 7.99.
"""

from __future__ import annotations

import threading

import numpy as np

from vmcellar.backup.model import Entropy

SAMPLE_BYTES = 16 << 10
EVERY_BYTES = 4 << 20
"""One sample for so many bytes that are kept: under one per cent of the time of an export."""
ALWAYS = 64
"""The first chunks of a segment that are sampled in any case, so that a small incremental has a figure too."""


class EntropySampler:
    """Of one segment. Any thread calls `look`; `found` when all have."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = Entropy()
        self._chunks = 0
        self._since = 0

    def look(self, data: memoryview) -> None:
        """Sample this chunk if it is one's turn; its weight is what it stands for."""
        with self._lock:
            self._chunks += 1
            self._since += len(data)
            if self._chunks > ALWAYS and self._since < EVERY_BYTES:
                return
            weight, self._since = self._since, 0
        bits = entropy(data[:SAMPLE_BYTES])
        with self._lock:
            self._total += Entropy(bits * weight, weight)

    def found(self) -> Entropy:
        """What the samples gave."""
        return self._total


def entropy(data: memoryview) -> float:
    """Bits per byte of the distribution of byte values (Shannon), 0 to 8."""
    counts = np.bincount(np.frombuffer(data, np.uint8))
    share = counts[counts > 0] / len(data)
    return abs(float((share * np.log2(share)).sum()))
