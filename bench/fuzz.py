"""Feed every parser of stored bytes with a million wrong inputs: only errors of ours may come out.

    ./run bench fuzz [--inputs 1000000] [--seed 1] [NAME...]

Each parser runs in a process of its own that may take 512 MiB more memory than it has at its begin, and ten seconds for
an input. Prints how many were tried, how many were read as whole, the rate, the slowest answer and the memory. The
first input with any other answer is printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
from pathlib import Path

from tests.faults.fuzz import Figures, FoundError, fuzz
from tests.faults.keyparsers import cheap_stretch
from tests.faults.parser import Parser
from tests.faults.parsers import every_parser

MORE_MEMORY = 512 << 20


def _memory() -> int:
    """Bytes of address space that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _row(figures: Figures, peak: int) -> str:
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(figures.kinds.items()))
    return (
        f"{figures.name:<26} {figures.inputs:>9,} {figures.read:>8,} {figures.inputs / figures.seconds:>9,.0f}/s "
        f"{figures.slowest * 1000:>8.1f} ms {peak >> 20:>5} MiB  {kinds}"
    )


def _one(parser: Parser, count: int, seed: int) -> int:
    limit = _memory() + MORE_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = _peak()
    try:
        figures = fuzz(parser, count, seed)
    except FoundError as error:
        print(f"FOUND {error}", flush=True)
        return 1
    print(_row(figures, _peak() - before), flush=True)
    return 0


def _in_a_process(parser: Parser, count: int, seed: int) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = _one(parser, count, seed)
        finally:
            sys.stdout.flush()
            os._exit(code)
    return int(os.waitpid(pid, 0)[1] != 0)


def main() -> int:
    """Run all parsers, or those named."""
    parser = argparse.ArgumentParser(prog="./run bench fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="parsers; default all")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of all parsers together, at least")
    parser.add_argument("--seed", type=int, default=1, help="another seed gives other inputs")
    arguments = parser.parse_args()
    cheap_stretch()
    with tempfile.TemporaryDirectory(prefix="vmcellar-fuzz-") as folder:
        every = [each for each in every_parser(Path(folder)) if not arguments.names or each.name in arguments.names]
        share = arguments.inputs / sum(each.weight for each in every)
        counts = [int(share * each.weight) + 1 for each in every]
        print(f"seed {arguments.seed}; columns: inputs, read as whole, rate, slowest, memory beyond the start, errors")
        failed = [_in_a_process(each, count, arguments.seed) for each, count in zip(every, counts, strict=True)]
    print(f"{sum(counts):,} inputs in {len(every)} parsers, {sum(failed)} of these failed")
    return int(any(failed))


if __name__ == "__main__":
    sys.exit(main())
