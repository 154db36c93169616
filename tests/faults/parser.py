"""What a parser under test is."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.faults.mutate import mutate

Mutate = Callable[[random.Random, Sequence[bytes]], bytes]


@dataclass(frozen=True)
class Parser:
    """`parse` takes any bytes; errors of ours are its only ones. `weight`: its share of a run's inputs."""

    name: str
    seeds: tuple[bytes, ...]
    parse: Callable[[bytes], object]
    mutate: Mutate = mutate
    weight: float = 1.0
    whole: bool = True
    """Whether the seeds are to be read without an error."""
