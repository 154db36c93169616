"""Index parts: which object lies where in which pack, as immutable sorted objects (format, section 8)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vmcellar.errors import IntegrityError
from vmcellar.repository import envelope, layout
from vmcellar.repository.layout import INDEX_PACK, INDEX_ROW
from vmcellar.repository.pack_format import PackRef, Table

if TYPE_CHECKING:
    from vmcellar.crypto.base import Keyring

IndexRows = np.ndarray[tuple[int], np.dtype[np.void]]
"""An array of INDEX_ROW."""

_HEADER = struct.calcsize(layout.INDEX_HEADER)


@dataclass(frozen=True, slots=True)
class PackEntry:
    """One pack and the rows of its table of contents."""

    pack: PackRef
    rows: Table


@dataclass(frozen=True, slots=True)
class IndexPart:
    """One part: `rows` sorted by id, their `pack` an index into `packs`. `damaged`: these failed a check."""

    packs: tuple[PackRef, ...]
    rows: IndexRows
    damaged: bool = False


def parts_of(entries: Sequence[PackEntry]) -> Iterator[IndexPart]:
    """The entries in as few parts as the largest part allows; a pack is never split."""
    pending: list[PackEntry] = []
    count = 0
    for entry in entries:
        if pending and count + len(entry.rows) > layout.INDEX_ROWS_MAX:
            yield part_of(pending)
            pending, count = [], 0
        pending.append(entry)
        count += len(entry.rows)
    if pending:
        yield part_of(pending)


def part_of(entries: Sequence[PackEntry]) -> IndexPart:
    """One part with all rows of these packs."""
    rows = np.zeros(sum(len(entry.rows) for entry in entries), INDEX_ROW)
    start = 0
    for number, entry in enumerate(entries):
        part = rows[start : start + len(entry.rows)]
        part["pack"], part["ordinal"], part["toc"] = number, np.arange(len(part)), entry.rows
        start += len(part)
    return IndexPart(tuple(entry.pack for entry in entries), sort_rows(rows))


def sort_rows(rows: IndexRows) -> IndexRows:
    """The rows in the order of their ids, as unsigned bytes, then of pack and ordinal."""
    words = np.ascontiguousarray(rows["toc"]["chunk"]).view(">u8")
    keys = (rows["ordinal"], rows["pack"], words[:, 3], words[:, 2], words[:, 1], words[:, 0])
    return rows[np.lexsort(keys)]


def encode(keyring: Keyring, part_id: bytes, part: IndexPart) -> bytes:
    """The object's bytes."""
    packs = np.zeros(len(part.packs), INDEX_PACK)
    for row, pack in zip(packs, part.packs, strict=True):
        row["id"], row["epoch"] = np.frombuffer(pack.id, np.uint8), np.frombuffer(pack.epoch, np.uint8)
        row["size"], row["kind"] = pack.size, pack.kind
    kind = layout.INDEX_DAMAGED if part.damaged else layout.INDEX_ENTRIES
    head = struct.pack(layout.INDEX_HEADER, kind, len(packs), len(part.rows))
    plain = head + packs.tobytes() + part.rows.tobytes()
    return envelope.wrap(keyring, layout.INDEX_MAGIC, layout.INDEX_SEAL, part_id, plain)


def decode(keyring: Keyring, part_id: bytes, data: bytes) -> IndexPart:
    """The part; IntegrityError that names it when it is not what was written."""
    try:
        return _parse(envelope.unwrap(keyring, layout.INDEX_MAGIC, layout.INDEX_SEAL, part_id, data))
    except IntegrityError as error:
        raise IntegrityError(
            f"index part {part_id.hex()}: {error.message}",
            hint=error.hint or "type `vmcellar rebuild-index` to make the index again from the packs",
        ) from error


def _parse(plain: bytes) -> IndexPart:
    if len(plain) < _HEADER:
        raise IntegrityError("it is cut short")
    kind, packs, rows = struct.unpack_from(layout.INDEX_HEADER, plain)
    start = _HEADER + packs * INDEX_PACK.itemsize
    if len(plain) != start + rows * INDEX_ROW.itemsize or kind not in (layout.INDEX_ENTRIES, layout.INDEX_DAMAGED):
        raise IntegrityError("its length does not fit its header")
    table = np.frombuffer(plain, INDEX_PACK, packs, _HEADER)
    found = np.frombuffer(plain, INDEX_ROW, rows, start)
    if rows and int(found["pack"].max()) >= packs:
        raise IntegrityError("it has rows of packs that it does not name")
    if struct.pack(layout.INDEX_HEADER, kind, packs, rows) != plain[:_HEADER] or not _is_sound(table, found):
        raise IntegrityError("it has packs or rows that no writer makes")
    refs = tuple(PackRef(r["id"].tobytes(), int(r["kind"]), r["epoch"].tobytes(), int(r["size"])) for r in table)
    return IndexPart(refs, found, kind == layout.INDEX_DAMAGED)


def _is_sound(packs: Table, rows: IndexRows) -> bool:
    """Whether packs have a kind and size that packs can have, and each row lies inside its pack: readers rely on it."""
    if np.any(packs["zero"]) or np.any(packs["size"] > layout.PACK_SIZE_MAX):
        return False
    toc = rows["toc"]
    ends = toc["offset"].astype(np.uint64) + toc["stored"]
    return bool(
        np.isin(packs["kind"], (layout.KIND_DATA, layout.KIND_META)).all()
        and not np.any(toc["zero"])
        and np.all(toc["length"] <= layout.CHUNK_MAX)
        and np.all(toc["stored"] <= layout.STORED_MAX)
        and np.all(ends <= packs["size"][rows["pack"]])
    )
