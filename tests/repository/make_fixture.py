"""Writes the repositories of format version 1 that `test_format.py` reads. Run once per format version, never again.

.venv/bin/python -m tests.repository.make_fixture tests/repository/fixtures/v1
.venv/bin/python -m tests.repository.make_fixture tests/repository/fixtures/v1-records

The second has what the first lacks: recipient mode, and one of each object that is not needed to read a disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from tests.crypto.store import CHEAP
from tests.repository.writing import Change, back_up, point_of, rows_of, store
from vmcellar.crypto.recipient import PrivateKey
from vmcellar.repository import drops, evidence, layout, leases, left_out, marks, withdrawn
from vmcellar.repository.aside import set_aside
from vmcellar.repository.diskmap import DiskMap
from vmcellar.repository.points import DiskRecord, RestorePoint
from vmcellar.repository.repository import Repository, make, unlock
from vmcellar.tiers.local import LocalTier
from vmcellar.tiers.mark import write_mark
from vmcellar.upkeep import pins

PASSPHRASE = b"correct horse battery staple"
MIB = 1 << 20
SIZE = 96 * MIB + 512
LINES = b"".join(b"line %06d\n" % i for i in range(90_000))[:MIB]
NOISE = random.Random(3).randbytes(64 << 10)
FULL: list[Change] = [(0, LINES), (2 * MIB, NOISE), (70 * MIB, b"third leaf"), (96 * MIB, b"the end")]
CHANGE: list[Change] = [(64 << 10, b"new" * 1000), (2 * MIB, 64 << 10), (40 * MIB, NOISE)]


HOST = b"the host's own"
PRIVATE = b"kept at home"
NOW = 1_800_000_060.0
TAKEN_BACK = ("20270115T080200Z-5f2b8c11", b"what its object was")
HOLDER = "boot 0b6f3c52-7c0e-4f6d-9a51-2d1f6a1f8e11"


def main() -> None:
    """Make the one that is named."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    (_records if folder.name.endswith("-records") else _disks)(folder)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _disks(folder: Path) -> None:
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
    folder.with_suffix(".json").write_text(json.dumps(expected, indent=1) + "\n")


def _records(folder: Path) -> None:
    """In recipient mode; its private key is beside it, under PRIVATE."""
    tier, private = LocalTier(folder), PrivateKey.generate()
    folder.with_suffix(".key").write_bytes(private.to_file(PRIVATE, CHEAP))
    make(tier, HOST, [private.public])
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(1) as pool, patch("os.uname", _uname):
        keyring, repository_id = unlock(tier, HOST)
        repository = Repository(tier, keyring, repository_id, Path(cache), lambda: NOW)
        point = _point_that_leaves_out(repository, pool)
        evidence.write(repository, _found(repository, point))
        pins.pin(repository, point, "before the upgrade")
        pins.hold(repository, point, HOLDER, "a VM runs from it: vmcellar boot web-boot")
        with patch.object(leases, "boot", _boot), patch.object(drops, "boot", _boot):
            _work_under_way(repository)
        tier.put(f"{layout.USES}{point.id}-20270115T080100Z", b"")
        tier.put(withdrawn.key_of(keyring, *TAKEN_BACK), b"")
        _damage(repository)
        repository.close()
        other = Path(cache, "warm")
        other.mkdir()
        write_mark(tier, LocalTier(other))
        tier.put("mirror", LocalTier(other).get("mirror"))  # beside the rest, so that one folder has all kinds
    tier.staging_dir().rmdir()


def _uname() -> SimpleNamespace:
    return SimpleNamespace(nodename="kvm1")


def _boot() -> str:
    return "6d3b2a4e-4a63-4c0c-8b5c-1f1c0a7f9d10/4026531836"


def _point_that_leaves_out(repository: Repository, pool: ThreadPoolExecutor) -> RestorePoint:
    changes: list[Change] = [(0, LINES)]
    packs = store(repository, changes)
    root, nodes = repository.empty_map(SIZE).replace(rows_of(repository, changes), SIZE)
    level = DiskMap(repository, SIZE).level
    record = DiskRecord("vda", SIZE, root.hex(), level, "qcow2", left_out.marked("image-1"))
    left = left_out.of_ranges(["/var/log"], {"vda": [(64 << 20, 128 << 10)]})
    artifacts = {"domain.xml": b"<domain/>", left_out.ARTIFACT: left_out.encode(left)}
    point = replace(point_of("web", record), repository=repository.id.hex())
    return repository.commit({pack.id: pack.rows for pack in packs}, nodes, artifacts, point, pool)


def _found(repository: Repository, point: RestorePoint) -> evidence.Evidence:
    checks = (evidence.Check("every byte", "as it was read", "as it was read", ok=True),)
    record = evidence.Evidence(point.id, point.vm, "verification", "passed", NOW, "kvm1", checks)
    return replace(record, repository=repository.id.hex())


def _work_under_way(repository: Repository) -> None:
    """A mark, the note of a deletion, and a lease that knows the mark: as if all of this went on."""
    tier, keyring = repository.tier, repository.keyring
    packs = [(layout.KIND_DATA, bytes.fromhex("aa" * 16)), (layout.KIND_META, bytes.fromhex("bb" * 16))]
    marks.write(tier, keyring, NOW, packs)
    note = drops.Drop(f"data/aa/{'aa' * 16}", "kvm1", _boot(), 4711, NOW)
    drops._KIND.write(tier, keyring, layout.drop_key(note.pack, os.urandom(16).hex()), note)
    with patch("os.getpid", lambda: 4711):
        leases.HeldLease(tier, keyring, "backup web", lambda: NOW)


def _damage(repository: Repository) -> None:
    """A note of a damaged copy, and an object that a repair set aside."""
    with repository.tier.open(layout.CONFIG_KEY):
        set_aside(repository.tier, layout.CONFIG_KEY)
    (pack,) = (pack for pack in repository.index.packs() if pack.kind == layout.KIND_DATA)
    (place,) = repository.index.locate([repository.keyring.chunk_id(LINES)]).values()
    assert place.pack.id == pack.id
    repository.index.note_damaged([place])


if __name__ == "__main__":
    main()
