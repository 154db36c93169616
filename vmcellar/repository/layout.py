"""Every constant of the repository format, version 1. Each names its section of docs/repository-format.md.

All integers are little-endian, all sizes and offsets are bytes.
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np

FORMAT_VERSION: Final = 1  # section 1

# Section 2: names of objects; all that is about keys is in vmcellar/crypto/layout.py
CONFIG_KEY: Final = "config"
DATA: Final = "data/"
META: Final = "meta/"
INDEX: Final = "index/"
POINTS: Final = "points/"
LEASES: Final = "leases/"
MARKS: Final = "gc/"
DROPS: Final = "drops/"
PINS: Final = "pins/"
EVIDENCE: Final = "evidence/"
USES: Final = "uses/"
WITHDRAWN: Final = "withdrawn/"
QUARANTINE: Final = "quarantine/"
REPOSITORY_DIGITS: Final = 8  # of a repository's id, in names of folders on a host and below staging/

ID_BYTES: Final = 32  # section 3: keyed BLAKE3 of a chunk or node
NAME_BYTES: Final = 16  # section 3: random name of a pack, an index part, a repository, an epoch
ABSENT: Final = bytes(ID_BYTES)  # section 3: the id that stands for "nothing": a hole, an empty subtree

GRID: Final = 64 << 10  # section 7: disks are compared on this grid
CHUNK_MAX: Final = 1 << 20  # section 7: no chunk is longer, and none crosses a multiple of it on its disk

ROW: Final = np.dtype([("offset", "<u8"), ("length", "<u4"), ("chunk_offset", "<u4"), ("chunk", "u1", (ID_BYTES,))])
"""One extent of a disk: `length` bytes at `offset` are those of `chunk` from `chunk_offset`. Not stored as such."""

# Section 5: packs
PACK_MAGIC: Final = b"vmcpack\n"
TRAILER_MAGIC: Final = b"vmctail\n"
HEADER: Final = "<8sHB5x16s16s16x"  # magic, version, kind, pack id, epoch id
HEADER_BYTES: Final = 64
TRAILER: Final = "<8sQII16s8x"  # magic, toc offset, sealed toc length, rows, pack id; then 16 bytes of digest
TRAILER_BYTES: Final = 64
TRAILER_DIGEST_BYTES: Final = 16
PACK_BLOCK: Final = 4096  # a pack's length is a multiple of it
PACK_BYTES: Final = 64 << 20  # a writer begins a new pack at this size
PACK_ROWS_MAX: Final = 1 << 16  # no pack has more objects
TOC_BYTES_MAX: Final = 4 << 20  # no sealed table of contents is longer
PACK_SIZE_MAX: Final = 1 << 32  # offsets in a pack have four bytes
STORED_MAX: Final = CHUNK_MAX + 64  # no object is longer, sealed
KIND_DATA: Final = 1
KIND_META: Final = 2
TOC_ROW: Final = np.dtype(
    [
        ("chunk", "u1", (ID_BYTES,)),
        ("offset", "<u4"),
        ("stored", "<u4"),
        ("length", "<u4"),
        ("method", "u1"),
        ("what", "u1"),
        ("zero", "<u2"),
    ]
)
METHOD_RAW: Final = 0
METHOD_ZSTD: Final = 1
WHAT_CHUNK: Final = 0
WHAT_NODE: Final = 1
OBJECT_SEAL: Final = b"object"  # kinds of sealed metadata, section 3
TOC_SEAL: Final = b"toc"  # section 3

# Section 6: nodes of disk maps
LEAF_BYTES: Final = 32 << 20
FAN_OUT: Final = 256
NODE_HEADER: Final = "<BBHI"  # node kind, level, zero, count
NODE_LEAF: Final = 1
NODE_INNER: Final = 2

# Section 8: index parts
INDEX_MAGIC: Final = b"vmcindx\n"
INDEX_SEAL: Final = b"index"
INDEX_HEADER: Final = "<BxxxII4x"  # part kind, packs, rows
INDEX_ENTRIES: Final = 1
INDEX_DAMAGED: Final = 2
INDEX_ROWS_MAX: Final = 1 << 20  # a writer begins a new part at this many rows
INDEX_PACK: Final = np.dtype(
    [("id", "u1", (NAME_BYTES,)), ("epoch", "u1", (NAME_BYTES,)), ("size", "<u8"), ("kind", "u1"), ("zero", "u1", (7,))]
)
INDEX_ROW: Final = np.dtype([("pack", "<u4"), ("ordinal", "<u4"), ("toc", TOC_ROW)])

# Section 9: points
POINT_MAGIC: Final = b"vmcpoin\n"
POINT_SEAL: Final = b"point"
POINT_SIGNED: Final = b"vmcellar restore point, version 1\n"
CONFIG_SEAL: Final = b"config"  # section 10

# Section 12: what upkeep and running writers leave for each other
LEASE_MAGIC: Final = b"vmcleas\n"
LEASE_SEAL: Final = b"lease"
MARK_MAGIC: Final = b"vmcmark\n"
MARK_SEAL: Final = b"gc mark"
DROP_MAGIC: Final = b"vmcdrop\n"
DROP_SEAL: Final = b"drop"
HOLDER: Final = re.compile(r"[0-9a-f]{32}")  # of a pin that several may have: NAME_BYTES in hex
PIN_MAGIC: Final = b"vmcpins\n"
PIN_SEAL: Final = b"pin"

# Section 13: evidence
EVIDENCE_MAGIC: Final = b"vmcevid\n"
EVIDENCE_SEAL: Final = b"evidence"
EVIDENCE_SIGNED: Final = b"vmcellar evidence, version 1\n"

ENVELOPE: Final = "<8sH6x"  # section 8: magic, version; the sealed object follows


def pack_key(kind: int, pack_id: bytes) -> str:
    """The key of a pack (section 2)."""
    name = pack_id.hex()
    return f"{META if kind == KIND_META else DATA}{name[:2]}/{name}"


def index_key(part_id: bytes) -> str:
    """The key of an index part (section 2)."""
    return f"{INDEX}{part_id.hex()}"


def point_key(point_id: str) -> str:
    """The key of a restore point (section 2)."""
    return f"{POINTS}{point_id}"


def level_for(size: int) -> int:
    """The level of the root node of a disk of `size` bytes (section 6): 0 is a single leaf."""
    level, span = 0, LEAF_BYTES
    while span < size:
        level, span = level + 1, span * FAN_OUT
    return level


def span_of(level: int) -> int:
    """How many bytes of disk a node of this level covers (section 6)."""
    return LEAF_BYTES * int(FAN_OUT**level)


def mark_key(mark_id: str) -> str:
    """The key of a gc mark (section 12)."""
    return f"{MARKS}{mark_id}"


def drop_key(pack: str, nonce: str) -> str:
    """The key of a note that a copy of the data pack with the key `pack` is to be deleted (section 12)."""
    return f"{DROPS}{pack.rpartition('/')[2]}-{nonce}"


def pack_of_drop(key: str) -> str:
    """The key of the data pack that such a note is about."""
    name = key.removeprefix(DROPS).partition("-")[0]
    return f"{DATA}{name[:2]}/{name}"


def pin_key(point_id: str, holder: str = "") -> str:
    """The key of a pin of a restore point (section 12): the one of its own, or that of a `holder`, in hex."""
    return f"{PINS}{point_id}-{holder}" if holder else f"{PINS}{point_id}"


def split_pin(key: str) -> tuple[str, str]:
    """The point that a pin is of, and its holder; empty for the one of its own."""
    name = key.removeprefix(PINS)
    point, _, holder = name.rpartition("-")
    return (point, holder) if HOLDER.fullmatch(holder) else (name, "")


def lease_key(lease_id: str, number: int) -> str:
    """The key of the `number`-th object of a lease (section 12)."""
    return f"{LEASES}{lease_id}-{number:08}"
