"""Feeds a parser with changed inputs; only errors of ours may come out, and soon."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.faults.parser import Parser
from vmcellar.errors import VmcellarError

HANG_SECONDS = 10.0


@dataclass
class Figures:
    """What a run came to. `kinds` counts the errors by class; `read` is how many inputs were read as whole."""

    name: str
    inputs: int = 0
    read: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)


class FoundError(AssertionError):
    """An input that a parser answers with something else than an error of ours."""


class _HangError(BaseException):
    """No `except Exception` of a parser swallows it."""


def fuzz(parser: Parser, count: int, seed: int) -> Figures:
    """FoundError with the input at the first find. Main thread only."""
    for seed_bytes in parser.seeds if parser.whole else ():
        parser.parse(seed_bytes)
    dice = random.Random(f"{parser.name} {seed}")
    figures = Figures(parser.name)
    before = signal.signal(signal.SIGALRM, _hang)
    started = time.perf_counter()
    try:
        for _ in range(count):
            one(parser, parser.mutate(dice, parser.seeds), figures)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    figures.inputs, figures.seconds = count, time.perf_counter() - started
    return figures


def one(parser: Parser, data: bytes, figures: Figures) -> None:
    """Try one input."""
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
    began = time.perf_counter()
    try:
        parser.parse(data)
        figures.read += 1
    except VmcellarError as error:
        figures.kinds[type(error).__name__] += 1
    except (_HangError, Exception) as error:
        raise FoundError(f"{parser.name}: {type(error).__name__}: {error}; input: {data[:2000].hex()}") from error
    figures.slowest = max(figures.slowest, time.perf_counter() - began)


def _hang(*_: object) -> None:
    raise _HangError(f"no answer within {HANG_SECONDS} s")
