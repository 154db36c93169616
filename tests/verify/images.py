"""Disks with real file systems in them, as bytes."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

MIB = 1 << 20
SIZE = 8 * MIB


def ext4(folder: Path, seed: int = 1) -> bytes:
    """A whole-disk ext4 with some files, made with e2fsprogs alone."""
    source = folder / f"files-{seed}"
    (source / "etc").mkdir(parents=True)
    dice = random.Random(seed)
    for number in range(8):
        (source / "etc" / f"file{number}").write_bytes(dice.randbytes(dice.randrange(1, 200_000)))
    image = folder / f"ext4-{seed}.raw"
    image.write_bytes(b"")
    command = ["/sbin/mke2fs", "-q", "-t", "ext4", "-F", "-d", str(source), str(image), f"{SIZE >> 10}k"]
    subprocess.run(command, check=True, capture_output=True)
    return image.read_bytes()


def partitioned(content: bytes) -> bytes:
    """The same inside the first partition of an MBR disk that begins at 1 MiB; the second holds nothing known."""
    rows = [(0x83, MIB // 512, len(content) // 512), (0x83, (MIB + len(content)) // 512, 2048)]
    table = b"".join(struct.pack("<B3xB3xII", 0, kind, start, size) for kind, start, size in rows)
    sector = bytes(446) + table.ljust(64, b"\0") + b"\x55\xaa"
    return sector.ljust(MIB, b"\0") + content + bytes(MIB)


def broken(content: bytes) -> bytes:
    """An ext4 whose root directory points into nowhere: its inode table is overwritten in part."""
    image = bytearray(content)
    block = 1024 << struct.unpack_from("<I", image, 1024 + 24)[0]
    descriptors = block * (2 if block == 1024 else 1)
    table = struct.unpack_from("<I", image, descriptors + 8)[0] * block
    image[table : table + 2048] = bytes(2048)
    return bytes(image)


def journal_dirty(folder: Path, content: bytes) -> bytes:
    """An ext4 in which a transaction of its journal was not yet carried out, as after a power loss.

    The block bitmap is in the journal as it must be, and wrong in its place.
    """
    image = folder / "dirty.raw"
    image.write_bytes(content)
    block, bitmap = 1024, struct.unpack_from("<I", content, 2048)[0]
    right = content[bitmap * block : (bitmap + 1) * block]
    (folder / "block").write_bytes(right)
    script = f"jo -c\njw -b {bitmap} {folder}/block\njc\n"
    command = ["/sbin/debugfs", "-w", "-f", "-", str(image)]
    subprocess.run(command, input=script.encode(), check=True, capture_output=True)
    dirty = bytearray(image.read_bytes())
    dirty[bitmap * block : (bitmap + 1) * block] = bytes(block)
    return bytes(dirty)
