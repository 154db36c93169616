"""Writes the repository of format version 1 that `test_format.py` reads. Run once per format version, never again.

.venv/bin/python -m tests.repository.make_fixture tests/repository/fixtures/v1
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.repository.writing import Change, back_up
from vmcellar.repository.repository import Repository, make, unlock
from vmcellar.tiers.local import LocalTier

PASSPHRASE = b"correct horse battery staple"
MIB = 1 << 20
SIZE = 96 * MIB + 512
LINES = b"".join(b"line %06d\n" % i for i in range(90_000))[:MIB]
NOISE = random.Random(3).randbytes(64 << 10)
FULL: list[Change] = [(0, LINES), (2 * MIB, NOISE), (70 * MIB, b"third leaf"), (96 * MIB, b"the end")]
CHANGE: list[Change] = [(64 << 10, b"new" * 1000), (2 * MIB, 64 << 10), (40 * MIB, NOISE)]


def main() -> None:
    """Make it."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    tier = LocalTier(folder)
    make(tier, PASSPHRASE)
    expected = {}
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(1) as pool:
        keyring, repository_id = unlock(tier, PASSPHRASE)
        repository = Repository(tier, keyring, repository_id, Path(cache))
        first = back_up(repository, pool, FULL, SIZE)
        second = back_up(repository, pool, CHANGE, SIZE, first)
        repository.close()
        image = bytearray(SIZE)
        for point, changes in ((first, FULL), (second, CHANGE)):
            for offset, content in changes:
                data = bytes(content) if isinstance(content, int) else content
                image[offset : offset + len(data)] = data
            expected[point.id] = hashlib.sha256(image).hexdigest()
    tier.staging_dir().rmdir()
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    folder.with_suffix(".json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
