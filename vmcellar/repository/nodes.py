"""Nodes of disk maps as bytes, and rows of extents as arrays (docs/repository-format.md, section 6)."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from vmcellar.errors import IntegrityError
from vmcellar.repository.layout import (
    CHUNK_MAX,
    FAN_OUT,
    ID_BYTES,
    LEAF_BYTES,
    NODE_HEADER,
    NODE_INNER,
    NODE_LEAF,
    ROW,
)

Rows = np.ndarray[tuple[int], np.dtype[np.void]]
"""An array of ROW, sorted by offset, without overlaps."""

Children = NDArray[np.uint8]
"""FAN_OUT ids of 32 bytes; ABSENT where there is no child."""

_HEADER = struct.calcsize(NODE_HEADER)
_LEAF_ROW = 12 + ID_BYTES


def no_rows(count: int = 0) -> Rows:
    """`count` rows of zeroes."""
    return np.zeros(count, ROW)


def ends(rows: Rows) -> NDArray[np.uint64]:
    """Where each row ends, in bytes of the disk."""
    result: NDArray[np.uint64] = rows["offset"] + rows["length"]
    return result


def zero_rows(offset: int, length: int) -> Rows:
    """Changes that say: these bytes are zero now."""
    most = LEAF_BYTES
    starts = np.arange(offset, offset + length, most, dtype=np.uint64)
    rows = no_rows(len(starts))
    rows["offset"] = starts
    rows["length"] = np.minimum(np.uint64(offset + length) - starts, np.uint64(most))
    return rows


def distinct(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Each value once, sorted, as `np.unique`, which loads NumPy's masked arrays first: 0.02 s of a commit's end."""
    result: NDArray[np.uint64] = np.sort(values)
    return result[np.append(True, result[1:] != result[:-1])] if len(result) else result


def is_zero(rows: Rows) -> NDArray[np.bool_]:
    """Which rows name no chunk."""
    return np.asarray(~rows["chunk"].any(axis=1), np.bool_)


def cut(rows: Rows, cuts: NDArray[np.uint64]) -> Rows:
    """The same extents, split wherever one of the sorted, distinct offsets `cuts` lies inside a row."""
    first = np.searchsorted(cuts, rows["offset"], side="right")
    last = np.searchsorted(cuts, ends(rows), side="left")
    pieces = 1 + last - first
    if len(rows) == 0 or int(pieces.max()) == 1:
        return rows
    owner = np.repeat(np.arange(len(rows)), pieces)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    result = rows[owner]
    inner = nth > 0
    result["offset"][inner] = cuts[(first[owner] + nth - 1)[inner]]
    stop = ends(rows)[owner]
    more = nth < pieces[owner] - 1
    stop[more] = cuts[(first[owner] + nth)[more]]
    result["length"] = stop - result["offset"]
    result["chunk_offset"] += (result["offset"] - rows["offset"][owner]).astype(np.uint32)
    result["chunk_offset"][is_zero(result)] = 0
    return result


def clip(rows: Rows, start: int, end: int) -> Rows:
    """The part of the extents that lies in [start, end)."""
    split = cut(rows, np.array([start, end], np.uint64)) if start < end else no_rows()
    return split[(split["offset"] >= start) & (split["offset"] < end)]


def overlay(rows: Rows, changes: Rows) -> Rows:
    """`rows` with `changes` written over them; zero changes leave a hole."""
    bounds = distinct(np.concatenate([changes["offset"], ends(changes)]))
    old = cut(rows, bounds)
    holder = np.searchsorted(changes["offset"], old["offset"], side="right")
    limit = np.concatenate([np.zeros(1, np.uint64), ends(changes)])
    kept = old[old["offset"] >= limit[holder]]
    merged = np.concatenate([kept, changes[~is_zero(changes)]])
    return merged[np.argsort(merged["offset"], kind="stable")]


def encode_leaf(rows: Rows, base: int) -> bytes:
    """The bytes of a leaf that covers the disk from `base`; `rows` lie inside it and none is zero."""
    columns = (
        (rows["offset"] - np.uint64(base)).astype("<u4"),
        rows["length"].astype("<u4"),
        rows["chunk_offset"].astype("<u4"),
        np.ascontiguousarray(rows["chunk"]),
    )
    return struct.pack(NODE_HEADER, NODE_LEAF, 0, 0, len(rows)) + b"".join(column.tobytes() for column in columns)


def decode_leaf(data: bytes, base: int) -> Rows:
    """The rows of a leaf at `base`; IntegrityError for every byte string that `encode_leaf` does not make."""
    count = _open_header(data, NODE_LEAF, 0, _LEAF_ROW)
    columns = np.frombuffer(data, "<u4", 3 * count, _HEADER).reshape(3, count)
    rows = no_rows(count)
    rows["offset"] = columns[0].astype(np.uint64)
    rows["length"], rows["chunk_offset"] = columns[1], columns[2]
    rows["chunk"] = np.frombuffer(data, np.uint8, offset=_HEADER + 12 * count).reshape(count, ID_BYTES)
    _check_leaf(rows)
    rows["offset"] += np.uint64(base)
    return rows


def _check_leaf(rows: Rows) -> None:
    inside = rows["chunk_offset"].astype(np.uint64) + rows["length"]
    if len(rows) == 0 or is_zero(rows).any() or not rows["length"].all():
        raise IntegrityError("a map leaf has empty extents")
    if (inside > CHUNK_MAX).any() or (ends(rows) > LEAF_BYTES).any():
        raise IntegrityError("a map leaf has extents that reach outside")
    if (rows["offset"][1:] < ends(rows)[:-1]).any():
        raise IntegrityError("a map leaf has extents that overlap")


def encode_inner(children: Children, level: int) -> bytes:
    """The bytes of an inner node; absent children take no room."""
    present = np.flatnonzero(children.any(axis=1))
    head = struct.pack(NODE_HEADER, NODE_INNER, level, 0, len(present))
    return head + present.astype(np.uint8).tobytes() + children[present].tobytes()


def decode_inner(data: bytes, level: int) -> Children:
    """The children of an inner node; IntegrityError for every byte string that `encode_inner` does not make."""
    count = _open_header(data, NODE_INNER, level, 1 + ID_BYTES)
    present = np.frombuffer(data, np.uint8, count, _HEADER).astype(np.int64)
    ids = np.frombuffer(data, np.uint8, offset=_HEADER + count).reshape(count, ID_BYTES)
    if count == 0 or (np.diff(present) <= 0).any() or not ids.any(axis=1).all():
        raise IntegrityError("an inner map node has children that no writer makes")
    children = no_children()
    children[present] = ids
    return children


def no_children() -> Children:
    """An inner node without children."""
    return np.zeros((FAN_OUT, ID_BYTES), np.uint8)


def _open_header(data: bytes, kind: int, level: int, item: int) -> int:
    """The count of items; IntegrityError unless header and length are exactly those of such a node."""
    if len(data) < _HEADER:
        raise IntegrityError("a map node is cut short")
    found_kind, found_level, zero, count = struct.unpack_from(NODE_HEADER, data)
    if (found_kind, found_level, zero) != (kind, level, 0) or len(data) != _HEADER + count * item:
        raise IntegrityError(f"not a map node of kind {kind} and level {level}")
    return int(count)
