"""Every parser of stored bytes, with whole inputs to begin with.

Behind the seals the keys are left out: what somebody with the metadata key could write must not hurt a reader either.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from blake3 import blake3

from tests.faults.keyparsers import config_parser, key_parsers
from tests.faults.memorytier import MemoryTier
from tests.faults.mutate import mutate_text
from tests.faults.openkeys import OpenKeyring
from tests.faults.parser import Parser
from tests.faults.readerparsers import reader_parsers
from tests.faults.runparsers import run_parsers
from vmcellar.crypto import slots
from vmcellar.crypto.epochs import by_epoch
from vmcellar.errors import IntegrityError
from vmcellar.guestfiles import filefrag
from vmcellar.repository import (
    codec,
    config_object,
    drops,
    envelope,
    evidence,
    index_parts,
    layout,
    leases,
    left_out,
    marks,
    nodes,
    points,
)
from vmcellar.repository.codec import Compression
from vmcellar.repository.index import Index
from vmcellar.repository.index_parts import IndexPart, PackEntry
from vmcellar.repository.pack_format import (
    PackRef,
    Table,
    Trailer,
    header,
    open_toc,
    parse_header,
    parse_trailer,
    trailer,
)
from vmcellar.repository.pack_reader import PackReader, groups
from vmcellar.repository.points import Artifact, DiskRecord, RestorePoint
from vmcellar.upkeep import pins

NAME = b"p" * 16
LEFT_OUT = left_out.encode(left_out.LeftOut(("/a",), {"vda": ((1, 2), (5, 1))}))
WORDS = b"""\
=FILE d41d8cd98f00b204e9800998ecf8427e  -
Filesystem type is: ef53
File size of /proc/self/fd/0 is 6291456 (1536 blocks of 4096 bytes)
 ext:     logical_offset:        physical_offset: length:   expected: flags:
   0:        0..    1023:      34816..     35839:   1024:
   1:     1024..    1535:      40960..     41471:    512:      35840: last,eof
/proc/self/fd/0: 2 extents found
=END
=DONE
"""
REPOSITORY = b"r" * 16
KEYS = OpenKeyring()
PACK = PackRef(NAME, layout.KIND_META, bytes(16), 8192)


def _same(given: bytes, again: bytes) -> None:
    """A format with one form for each content: what is read is what would be written."""
    if given != again:
        raise AssertionError("it was read, and is not what a writer makes of the same content")


# packs


def rows_of(plains: Sequence[bytes], stored: Sequence[bytes], methods: Sequence[int]) -> Table:
    rows = np.zeros(len(plains), layout.TOC_ROW)
    place = layout.HEADER_BYTES
    for row, plain, kept, method in zip(rows, plains, stored, methods, strict=True):
        row["chunk"] = np.frombuffer(blake3(plain).digest(), np.uint8)
        row["offset"], row["stored"], row["length"] = place, len(kept), len(plain)
        row["method"], row["what"] = method, layout.WHAT_CHUNK
        place += len(kept)
    return rows


def whole_pack() -> tuple[bytes, Table, Trailer]:
    plains = [b"text " * 200, bytes(range(256)), b"x"]
    encoded = [Compression(3).encode(plain) for plain in plains]
    stored = [bytes(kept) for _, kept in encoded]
    rows = rows_of(plains, stored, [method for method, _ in encoded])
    toc = header(PACK) + rows.tobytes()
    offset = layout.HEADER_BYTES + sum(map(len, stored))
    found = Trailer(offset, len(toc), len(rows))
    pack = replace(PACK, size=4096)
    body = header(pack) + b"".join(stored) + toc
    return body.ljust(4096 - layout.TRAILER_BYTES, b"\0") + trailer(pack, found), rows, found


def parse_pack(data: bytes) -> None:
    """Under its right name, and with the trailer's own digest made right."""
    size = len(data)
    if size >= layout.TRAILER_BYTES:
        body = data[: -layout.TRAILER_DIGEST_BYTES]
        data = body + blake3(body[-48:]).digest(layout.TRAILER_DIGEST_BYTES)
    key = layout.pack_key(PACK.kind, NAME)
    with PackReader(MemoryTier({key: data}), key, KEYS) as reader:
        found = reader.locations()
        reader.check_padding()
        for group in groups(found):
            for _ in reader.read_group(group):
                pass


def parse_words(data: bytes) -> None:
    """A file that is in doubt is no error, but one that is kept."""
    if filefrag.parse(data.decode(errors="replace"))[1]:
        raise IntegrityError("kept")


def parse_object(data: bytes) -> None:
    method, length = struct.unpack_from("<BI", data.ljust(5, b"\0"))
    plain = codec.decode(method % 3, data[5:], length)
    assert len(plain) == length
    if method % 3 == layout.METHOD_ZSTD:  # as a restore decodes it
        out = bytearray(length)
        codec.decompress_into(memoryview(data)[5:], memoryview(out))
        assert out == plain


def parse_trailer_bytes(data: bytes) -> None:
    if len(data) == layout.TRAILER_BYTES:
        data = data[:48] + blake3(data[:48]).digest(16)
    _same(data, trailer(PACK, parse_trailer(PACK, data)))


def parse_toc(found: Trailer, data: bytes) -> None:
    rows = (len(data) - layout.HEADER_BYTES) // layout.TOC_ROW.itemsize
    open_toc(KEYS, PACK, replace(found, rows=max(0, rows)), data)


# index, maps, points, records


def index_seeds() -> tuple[bytes, ...]:
    _, rows, _ = whole_pack()
    packs = [PackRef(bytes([number]) * 16, layout.KIND_DATA, bytes(16), 4096) for number in range(3)]
    parts = [index_parts.part_of([PackEntry(pack, rows) for pack in packs]), index_parts.part_of([])]
    parts.append(IndexPart(tuple(packs[:1]), index_parts.part_of([PackEntry(packs[0], rows)]).rows, damaged=True))
    return tuple(index_parts.encode(KEYS, NAME, part) for part in parts)


def parse_index(data: bytes) -> None:
    _same(data, index_parts.encode(KEYS, NAME, index_parts.decode(KEYS, NAME, data)))


def import_index(folder: Path, data: bytes) -> None:
    """As a refresh takes it into the cache, and then looks for what it names."""
    tier = MemoryTier({layout.index_key(NAME): data})
    index = Index(tier, KEYS, folder / "cache.sqlite")
    try:
        index.refresh()
        part = index_parts.decode(KEYS, NAME, data)
        found = index.locate([row["toc"]["chunk"].tobytes() for row in part.rows[:5]])
        index.known(found)
        for location in found.values():
            with PackReader(MemoryTier({location.pack.key: bytes(4096)}), location.pack.key, KEYS) as reader:
                for group in groups([location]):
                    list(reader.read_group(group))
    finally:
        index.close()
        for path in folder.glob("cache.sqlite*"):
            path.unlink()


def parse_leaf(data: bytes) -> None:
    _same(data, nodes.encode_leaf(nodes.decode_leaf(data, 1 << 40), 1 << 40))


def parse_inner(data: bytes) -> None:
    level = data[1] if len(data) > 1 else 1
    _same(data, nodes.encode_inner(nodes.decode_inner(data, level), level))


def node_seeds() -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    rows = nodes.no_rows(3)
    rows["offset"], rows["length"] = [0, 1 << 20, 5 << 20], [1 << 20, 65536, 10]
    rows["chunk"] = 7
    children = np.zeros((layout.FAN_OUT, layout.ID_BYTES), np.uint8)
    children[[0, 3, 255]] = 9
    return (nodes.encode_leaf(rows, 0),), (nodes.encode_inner(children, 1), nodes.encode_inner(children, 2))


def a_point() -> RestorePoint:
    disk = DiskRecord("vda", 96 << 20, "ab" * 32, 1, "qcow2", "image", bytes_read=9)
    artifact = Artifact("domain.xml", 9, ("cd" * 32,))
    return RestorePoint(
        id="20270115T080000Z-f81c294b", vm="web", vm_uuid="u", time=1.8e9, kind="full", reason="first backup",
        parent=None, consistency="crash", verified=True, checkpoint="c", checkpoint_xml="<c/>", disks=(disk,),
        repository=REPOSITORY.hex(), artifacts=(artifact,), seconds={"export": 1.5},
    )  # fmt: skip


def parse_point(data: bytes) -> None:
    point = points.decode(KEYS, REPOSITORY, a_point().id, data)
    for disk in point.disks:
        bytes.fromhex(disk.root)
    assert point.when.year > 0
    points.encode(KEYS, REPOSITORY, point)


def record_seeds() -> dict[str, bytes]:
    tier = MemoryTier()
    lease = leases.HeldLease(tier, KEYS, "backup web", lambda: 1.8e9)
    marks.write(tier, KEYS, 1.8e9, [(layout.KIND_DATA, b"a" * 16), (layout.KIND_META, b"b" * 16)])
    found = {key.partition("/")[0]: data for key, data in tier.objects.items()}
    with drops.announced(tier, KEYS, f"data/aa/{'aa' * 16}", lambda: 1.8e9):
        found |= {key.partition("/")[0]: data for key, data in tier.objects.items() if key.startswith(layout.DROPS)}
    assert found.keys() == {"leases", "gc", "drops"}, lease
    text = b'{"note":"keep","time":1.8e9,"host":"h"}'
    return {**found, "pins": envelope.wrap(KEYS, layout.PIN_MAGIC, layout.PIN_SEAL, b"pins/p", text)}


def parse_lease(data: bytes) -> None:
    for lease in leases.found(MemoryTier({layout.lease_key("0" * 32, 1): data}), KEYS):
        lease.stale(1.8e9)


def parse_mark(data: bytes) -> None:
    for mark in marks.read(MemoryTier({layout.mark_key("m"): data}), KEYS, ["m"]).values():
        mark.packs()


def parse_drop(data: bytes) -> None:
    drops._is_over("drops/d", drops._KIND.read(MemoryTier({"drops/d": data}), KEYS, "drops/d"), 1.8e9)


def parse_pin(data: bytes) -> None:
    pins._KIND.read(MemoryTier({"pins/p": data}), KEYS, "pins/p")


EVIDENCE = "20270115T080000Z-f81c294b-20270116T031500Z-drill-passed-0011aabb"


def some_evidence() -> bytes:
    checks = (evidence.Check("boot", "yes", "yes", ok=True),)
    record = evidence.Evidence("20270115T080000Z-f81c294b", "web", "drill", "passed", 1.8e9, "h", checks)
    return evidence.encode(KEYS, REPOSITORY, EVIDENCE, replace(record, repository=REPOSITORY.hex(), screenshot=b"PNG"))


def parse_evidence(data: bytes) -> None:
    evidence.decode(KEYS, REPOSITORY, EVIDENCE, data)


# names


def parse_names(data: bytes) -> None:
    """Whatever somebody has put into the folders of a tier."""
    name = data.decode(errors="replace").replace("/", "").replace("\0", "")
    tier = MemoryTier(
        {f"{prefix}{name}": b"?" for prefix in ("leases/", "gc/", "index/", "keys/", "epochs/", "points/")}
    )
    calls: tuple[Callable[[], object], ...] = (
        lambda: leases.found(tier, KEYS),
        lambda: marks.read(tier, KEYS, marks.names_of(tier)),
        lambda: by_epoch(tier),
        lambda: slots.list_slots(tier),
        lambda: points.is_point_id(name),
        lambda: _index_names(tier),
    )
    for call in calls:
        try:
            call()
        except IntegrityError as error:
            assert error.message


def _index_names(tier: MemoryTier) -> None:
    from vmcellar.repository.index import _part_id  # noqa: PLC0415  (the one thing of it that looks at names)

    for key, _ in tier.list("index/"):
        _part_id(key)


NAMES = (
    b"0" * 32 + b"-00000001", b"0" * 32, b"20270115T080000Z-f81c294b", "０²-½".encode(), b"ab cd",
    b"0" * 32 + "-²".encode(), b"0" * 32 + b"-" + b"0" * 16,
)  # fmt: skip


def every_parser(folder: Path) -> list[Parser]:
    """All of them; `folder` is for caches."""
    pack, rows, found = whole_pack()
    leaves, inners = node_seeds()
    records = record_seeds()
    packed = bytes(Compression(3).encode(b"text " * 200)[1])
    objects = (struct.pack("<BI", 1, 1000) + packed, struct.pack("<BI", 0, 5) + b"plain")
    config = config_object.encode(KEYS, REPOSITORY)
    point = points.encode(KEYS, REPOSITORY, a_point())
    return [
        Parser("pack header", (header(PACK),), lambda data: _same(data, header(parse_header(data, PACK.size)))),
        Parser("pack trailer", (trailer(PACK, Trailer(4096, 4096 - 128, 3)),), parse_trailer_bytes),
        Parser("table of contents", (header(PACK) + rows.tobytes(),), partial(parse_toc, found)),
        Parser("whole pack", (pack,), parse_pack),
        Parser("stored object (zstd)", objects, parse_object, weight=2),
        Parser("map leaf", leaves, parse_leaf, weight=2),
        Parser("map inner node", inners, parse_inner, weight=2),
        Parser("index part", index_seeds(), parse_index, weight=2),
        Parser("index part into the cache", index_seeds(), partial(import_index, folder), weight=0.02, whole=False),
        Parser("restore point", (point,), parse_point, mutate_text),
        Parser("config object", (config,), config_object.parse, mutate_text),
        Parser("lease", (records["leases"],), parse_lease, mutate_text),
        Parser("gc mark", (records["gc"],), parse_mark, mutate_text),
        Parser("drop", (records["drops"],), parse_drop, mutate_text),
        Parser("pin", (records["pins"],), parse_pin, mutate_text),
        Parser("evidence", (some_evidence(),), parse_evidence, mutate_text),
        Parser("left out", (LEFT_OUT,), left_out.decode, mutate_text),
        Parser("filefrag", (WORDS,), parse_words, mutate_text),
        Parser(
            "envelope", (records["pins"],),
            lambda data: envelope.unwrap(KEYS, layout.PIN_MAGIC, layout.PIN_SEAL, b"n", data),
        ),
        Parser("object names", NAMES, parse_names, whole=False),
        *key_parsers(),
        config_parser(),
        *run_parsers(folder / "runs"),
        *reader_parsers(folder / "reader", index_seeds()[0], pack, leaves[0], inners[0], point),
    ]  # fmt: skip
