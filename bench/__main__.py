"""`./run bench [NAME] [ARGS]`: run one bench, or list them."""

from __future__ import annotations

import importlib
import sys

NAMES = (
    "analysis",
    "backup",
    "boot",
    "cooling",
    "crypto",
    "dedup",
    "export",
    "fuzz",
    "histories",
    "memory",
    "proofs",
    "repository",
    "restore",
    "scale",
    "soak",
    "tiers",
)


def main() -> int:
    """Hand the arguments to the bench that was named."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        print(f"use: ./run bench {' | '.join(NAMES)} [ARGS]; each tells its arguments with --help")
        return 2 if len(sys.argv) > 1 else 0
    name = sys.argv.pop(1)
    result: int = importlib.import_module(f"bench.{name}").main() or 0
    return result


if __name__ == "__main__":
    sys.exit(main())
