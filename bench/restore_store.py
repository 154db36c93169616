"""A repository with one point of one image, made through the repository's own interface; and one restore of it."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from vmcellar.config.load import load_config
from vmcellar.memory import keep_freed_memory
from vmcellar.repository import nodes
from vmcellar.repository.layout import CHUNK_MAX, GRID
from vmcellar.repository.points import DiskRecord, RestorePoint, new_point_id
from vmcellar.repository.repository import Repository
from vmcellar.restore.report import RestoreTarget
from vmcellar.restore.restore import restore_point

MIB = 1 << 20


def make_repository(folder: Path, raw: Path) -> str:
    """The id of a point of `raw` in a new repository below `folder`, with folder/vmcellar.yaml."""
    (folder / "passphrase").write_text("bench\n")
    places = {name: str(folder / name) for name in ("state", "scratch")}
    key = {"file": str(folder / "passphrase")}
    config = folder / "vmcellar.yaml"
    config.write_text(json.dumps({"tiers": {"hot": str(folder / "repository")}, "key": key, **places}))
    keep_freed_memory()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        repository = Repository.init(load_config(config))
        point = store(repository, raw, pool)
        repository.close()
    return point.id


def restore(config: Path, point: str, out: Path) -> None:
    """One restore to raw in this process."""
    repository = Repository.open(load_config(config))
    restore_point(repository, repository.point(point), RestoreTarget(out, "raw"))
    repository.close()


def pieces(raw: Path) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) as a full backup stores them: runs of 64 KiB cells that are not zero, within 1 MiB."""
    with raw.open("rb") as file:
        offset = 0
        while data := file.read(CHUNK_MAX):
            cells = [data[i : i + GRID] for i in range(0, len(data), GRID)]
            used = [cell.count(0) != len(cell) for cell in cells]
            for key, run in itertools.groupby(range(len(cells)), key=used.__getitem__):
                if key:
                    numbers = list(run)
                    yield offset + numbers[0] * GRID, b"".join(cells[i] for i in numbers)
            offset += len(data)


def store(repository: Repository, raw: Path, pool: ThreadPoolExecutor) -> RestorePoint:
    """A committed point of one disk, vda."""
    size = raw.stat().st_size
    writer = repository.pack_writer(repository.tier.staging_dir(), "zstd:auto")
    found: dict[int, tuple[int, bytes]] = {}
    seen: set[bytes] = set()
    for offset, data in pieces(raw):
        chunk = repository.keyring.chunk_id(data)
        found[offset] = len(data), chunk
        if chunk not in seen:
            writer.append(chunk, data)
            seen.add(chunk)
    packs = {}
    for sealed in writer.finish():
        repository.tier.adopt(sealed.path, sealed.key)
        packs[sealed.id] = sealed.rows
    rows = nodes.no_rows(len(found))
    rows["offset"] = list(found)
    rows["length"] = [length for length, _ in found.values()]
    rows["chunk"] = np.frombuffer(b"".join(chunk for _, chunk in found.values()), np.uint8).reshape(-1, 32)
    empty = repository.empty_map(size)
    root, added = empty.replace(rows)
    record = DiskRecord("vda", size, root.hex(), empty.level, "qcow2", "bench")
    now = time.time()
    point = RestorePoint(
        new_point_id(now), "bench", "", now, "full", "", None, "crash", True, "", "", (record,), tool="bench"
    )
    return repository.commit(packs, added, {"domain.xml": b"<domain/>"}, point, pool)
