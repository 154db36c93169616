"""What encryption costs, and how fast everything that is stored can be checked.

    ./run bench crypto [--disk 8g] [--rounds 5] [--gib 1]

1. Full backups of one paused guest in turn, with and without encryption of the packs' objects, by the engine alone.
   Without exists only here: a cipher that copies. Prints CPU seconds and how many per cent more encryption takes
   (asked: at most 15).
2. `verify --deep` of incompressible data: MB/s per core, the ceilings of the libraries beside it (asked: at least 600,
   or what they allow).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lab import daemons
from lab.bigdisk import DISKS, big_guest
from lab.paths import vm_folder
from vmcellar.backup import pipeline
from vmcellar.backup.model import BackupRequest
from vmcellar.config.load import load_config
from vmcellar.crypto.base import Buffer, Keyring
from vmcellar.crypto.layout import SEAL_OVERHEAD
from vmcellar.engine import Engine
from vmcellar.memory import keep_freed_memory
from vmcellar.repository.packs import PackWriter, verify_pack
from vmcellar.repository.repository import Repository, make, unlock
from vmcellar.sources.libvirt_source import LibvirtSource
from vmcellar.tiers.local import LocalTier

CHUNK = 1 << 20


class CopyingCipher:
    """No cipher: objects lie in the pack as they are. For this bench alone; nothing else can make one."""

    def seal(self, _ordinal: int, plain: Buffer) -> bytes:
        """The bytes and room for a tag."""
        return bytes(plain) + bytes(SEAL_OVERHEAD)

    def seal_into(self, _ordinal: int, plain: Buffer, out: memoryview) -> None:
        """As `seal`."""
        out[: len(plain)] = plain

    def open(self, _ordinal: int, sealed: Buffer) -> bytes:
        """The bytes without the room."""
        return bytes(memoryview(sealed)[:-SEAL_OVERHEAD])

    def open_into(self, _ordinal: int, sealed: Buffer, out: memoryview) -> None:
        """As `open`."""
        out[:] = memoryview(sealed)[:-SEAL_OVERHEAD]


class Unencrypted:
    """A keyring whose data packs are not encrypted; all else is the real one's."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def pack_cipher(self, _epoch: bytes, _pack: bytes) -> CopyingCipher:
        """The cipher that is none."""
        return CopyingCipher()

    def __getattr__(self, name: str) -> Any:
        """Whatever else a keyring does."""
        return getattr(self._keyring, name)


def full_backup(vm: str, folder: Path, encrypted: bool) -> float:
    """CPU seconds of this process for one full backup into a new repository."""
    (folder / "passphrase").write_text("bench\n")
    places = {name: str(folder / name) for name in ("state", "scratch")}
    key = {"file": str(folder / "passphrase")}
    (folder / "vmcellar.yaml").write_text(json.dumps({"tiers": {"hot": str(folder / "hot")}, "key": key, **places}))
    config = load_config(folder / "vmcellar.yaml")
    repository = Repository.init(config)
    if not encrypted:
        unencrypted: Any = Unencrypted(repository.keyring)
        repository.keyring = unencrypted
    engine = Engine(config, repository, LibvirtSource(config.libvirt.uri, config.scratch))
    _, cpu = measured(lambda: pipeline.run(engine, BackupRequest(vm, mode="full")))
    engine.cpu.shutdown()
    repository.close()
    return cpu


def encryption(disk: str, rounds: int) -> None:
    """The first part."""
    daemons.ensure()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with big_guest(DISKS[disk]) as guest:
        for number in range(2 * rounds):
            encrypted = number % 4 in {0, 3}  # in turn, and neither always first
            with vm_folder("bench") as folder:
                seconds[encrypted].append(full_backup(guest.name, folder, encrypted))
                for checkpoint in guest.domain.listAllCheckpoints():
                    checkpoint.delete()
            print(f"  {'encrypted' if encrypted else 'plain':10} cpu {seconds[encrypted][-1]:6.2f} s", flush=True)
    on, off = (statistics.median(seconds[which]) for which in (True, False))
    print(f"encryption on {on:.2f} CPU s, off {off:.2f} CPU s: {100 * (on / off - 1):+.1f} % (asked: at most 15)")


def deep_verify(gib: float, rounds: int) -> None:
    """The second part."""
    keep_freed_memory()
    count = max(1, int(gib * 1024))
    chunks = [os.urandom(CHUNK) for _ in range(64)]
    megabytes = count * CHUNK / 1e6
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        tier = LocalTier(Path(folder))
        make(tier, b"bench")
        keyring, _ = unlock(tier, b"bench")
        writer = PackWriter(keyring, tier.staging_dir())
        for number in range(count):
            writer.append(keyring.chunk_id(chunks[number % 64]), chunks[number % 64])
        packs = writer.finish()
        for pack in packs:
            tier.adopt(pack.path, pack.key)
        taken = [measured(lambda: [verify_pack(tier, p.key, keyring, pool) for p in packs]) for _ in range(rounds)]
    wall, cpu = (statistics.median(column) for column in zip(*taken, strict=True))
    aead, nonce = AESGCM(bytes(32)), bytes(12)
    sealed = [aead.encrypt(nonce, chunk, None) for chunk in chunks]
    out = bytearray(CHUNK)
    opened = measured(lambda: [aead.decrypt_into(nonce, each, None, out) for each in sealed])[1]
    hashed = measured(lambda: [blake3(each, key=bytes(32)).digest() for each in chunks])[1]
    ceiling = 64 * CHUNK / 1e6 / (opened + hashed)
    print(f"deep verify, incompressible: {megabytes / cpu:.0f} MB/s per core, {megabytes / wall:.0f} MB/s on all cores")
    print(f"ceiling of AES-256-GCM and BLAKE3 alone: {ceiling:.0f} MB/s per core (asked: 600)")


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """(wall seconds, CPU seconds of this process)."""
    before, begun = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return time.monotonic() - begun, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disk", choices=sorted(DISKS), default="8g")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gib", type=float, default=1.0, help="how much `verify` reads")
    options = parser.parse_args()
    deep_verify(options.gib, options.rounds)
    encryption(options.disk, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
