"""The index: parts bit by bit, the cache in step with the tier, and made again from the packs."""

from __future__ import annotations

import random
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.repository.fakes import FixedKeyring
from tests.repository.writing import back_up, read_disk, store
from vmcellar.errors import IntegrityError, PermanentError
from vmcellar.repository import envelope, index_file, index_parts, layout
from vmcellar.repository.index import Index
from vmcellar.repository.index_parts import IndexPart, PackEntry
from vmcellar.repository.layout import TOC_ROW
from vmcellar.repository.pack_format import PackRef
from vmcellar.repository.rebuild import rebuild_index
from vmcellar.repository.repository import Repository

SIZE = 4 << 20
CHANGES: list[tuple[int, bytes | int]] = [
    (0, b"one" * 999),
    (1 << 20, b"two" * 999),
    (2 << 20, random.Random(1).randbytes(1 << 20)),
]


def entry(number: int, ids: list[bytes]) -> PackEntry:
    rows = np.zeros(len(ids), TOC_ROW)
    for i, (row, chunk) in enumerate(zip(rows, ids, strict=True)):
        row["chunk"], row["offset"], row["stored"], row["length"] = np.frombuffer(chunk, np.uint8), 64 + i, 1, 7
    return PackEntry(PackRef(bytes([number]) * 16, layout.KIND_DATA, b"e" * 16, 8192), rows)


def ids(count: int, seed: int = 1) -> list[bytes]:
    dice = random.Random(seed)
    return [dice.randbytes(32) for _ in range(count)]


def test_rows_are_sorted_by_id() -> None:
    part = index_parts.part_of([entry(1, ids(500)), entry(2, ids(500, 2))])
    found = [row["toc"]["chunk"].tobytes() for row in part.rows]
    assert found == sorted(found)


def test_every_flipped_bit_and_cut_of_a_part_is_found_and_named(keyring: FixedKeyring) -> None:
    part_id = b"p" * 16
    data = index_parts.encode(keyring, part_id, index_parts.part_of([entry(1, ids(2))]))
    whole = index_parts.decode(keyring, part_id, data)
    assert whole.packs == (entry(1, []).pack,)
    for place in range(len(data)):
        for bit in range(8):
            damaged = data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
            with pytest.raises(IntegrityError, match=part_id.hex()):
                index_parts.decode(keyring, part_id, damaged)
    for length in range(len(data)):
        with pytest.raises(IntegrityError, match=part_id.hex()):
            index_parts.decode(keyring, part_id, data[:length])
    with pytest.raises(IntegrityError):
        index_parts.decode(keyring, b"q" * 16, data)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.binary(max_size=300))
def test_any_plain_bytes_parse_or_are_refused(plain: bytes) -> None:
    keyring = FixedKeyring()
    sealed = envelope.wrap(keyring, layout.INDEX_MAGIC, layout.INDEX_SEAL, b"p" * 16, plain)
    try:
        part = index_parts.decode(keyring, b"p" * 16, sealed)
    except IntegrityError:
        return
    assert isinstance(part, IndexPart)


def test_locate_and_known_in_large_batches(repository: Repository) -> None:
    every = ids(3000)
    repository.index.add([entry(1, every[:2000]), entry(2, every[1000:])])
    assert repository.index.known([*every, b"n" * 32]) == set(every)
    found = repository.index.locate([*every, b"n" * 32])
    assert set(found) == set(every)
    assert found[every[0]].pack == entry(1, []).pack
    assert found[every[2999]] == (entry(2, []).pack, every[2999], 1999, 64 + 1999, 1, 7, 0, 0)
    assert [pack.id for pack in repository.index.packs()] == [b"\1" * 16, b"\2" * 16]


def test_a_part_that_goes_takes_its_packs_along(repository: Repository) -> None:
    first, second = ids(10), ids(10, 2)
    repository.index.add([entry(1, first)])
    (old,) = repository.tier.list(layout.INDEX)
    repository.index.add([entry(2, second)])
    repository.tier.delete(old[0])
    repository.index.refresh()
    assert repository.index.known([*first, *second]) == set(second)


def test_merged_parts_keep_what_the_old_ones_had(repository: Repository) -> None:
    first, second = ids(10), ids(10, 2)
    repository.index.add([entry(1, first)])
    repository.index.add([entry(2, second)])
    old = [key for key, _ in repository.tier.list(layout.INDEX)]
    repository.index.add([entry(1, first), entry(2, second)])
    for key in old:
        repository.tier.delete(key)
    repository.index.refresh()
    assert repository.index.known([*first, *second]) == {*first, *second}


def test_whichever_of_two_parts_that_name_a_pack_goes_the_other_keeps_it(
    repository: Repository, tmp_path: Path
) -> None:
    every = ids(10)
    for _ in range(2):
        repository.index.add([entry(1, every)])
    keys = [key for key, _ in repository.tier.list(layout.INDEX)]
    for number, gone in enumerate(keys):
        index = Index(repository.tier, FixedKeyring(), tmp_path / f"cache{number}.sqlite")
        index.refresh()
        kept = repository.tier.get(gone)
        repository.tier.delete(gone)
        index.refresh()
        assert index.known(every) == set(every)
        repository.tier.put(gone, kept)
        index.close()


def test_a_damaged_part_is_named_with_its_remedy(
    repository: Repository, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    point = back_up(repository, pool, CHANGES, SIZE)
    image = read_disk(repository, point)
    ((key, _),) = repository.tier.list(layout.INDEX)
    path = tmp_path / "hot" / key
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    other = Repository(repository.tier, FixedKeyring(), repository.id, tmp_path / "other")
    with pytest.raises(IntegrityError, match=key.removeprefix("index/")) as caught:
        other.index.refresh()
    assert "rebuild-index" in caught.value.hint
    rebuild_index(other)
    assert read_disk(other, other.point("web@latest")) == image
    other.close()


def test_the_index_is_made_again_from_the_packs(
    repository: Repository, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    first = back_up(repository, pool, CHANGES, SIZE)
    second = back_up(repository, pool, [(0, b"new")], SIZE, first)
    images = [read_disk(repository, point) for point in (first, second)]
    shutil.rmtree(tmp_path / "hot" / "index")
    other = Repository(repository.tier, FixedKeyring(), repository.id, tmp_path / "other")
    with pytest.raises(IntegrityError, match="rebuild-index"):
        read_disk(other, first)
    report = rebuild_index(other)
    assert (report.packs, report.damaged) == (5, ())
    assert [read_disk(other, point) for point in (first, second)] == images
    again = rebuild_index(other)
    assert again == report
    assert len(list(other.tier.list(layout.INDEX))) == 1
    other.close()


def test_a_damaged_pack_does_not_stop_a_rebuild_and_is_named(
    repository: Repository, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    back_up(repository, pool, CHANGES, SIZE)
    (pack,) = store(repository, [(0, b"in a pack that gets damaged")])
    path = tmp_path / "hot" / pack.key
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    report = rebuild_index(repository)
    assert len(report.damaged) == 1
    assert pack.key in report.damaged[0]


def test_notes_of_damage_survive_a_rebuild(repository: Repository, pool: ThreadPoolExecutor) -> None:
    back_up(repository, pool, CHANGES, SIZE)
    chunk = repository.keyring.chunk_id(b"one" * 999)
    repository.index.note_damaged(repository.index.locate([chunk]).values())
    rebuild_index(repository)
    assert repository.index.known([chunk]) == set()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_many_short_lived_threads_leave_no_open_files(repository: Repository) -> None:
    """Each segment of a backup has threads of its own that ask the index."""

    def ask() -> None:
        assert repository.index.known(ids(1)) == set()

    before = open_files()
    for _ in range(60):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert open_files() <= before + 4


def test_a_part_that_comes_while_another_process_refreshes_stays(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both share the cache file; what comes after the listing is not taken for what has gone."""
    writer = Index(repository.tier, repository.keyring, repository.cache_dir / f"index-{repository.id.hex()}.sqlite")
    wanted = ids(3)
    listing = repository.tier.list

    def add_meanwhile(prefix: str) -> Iterator[tuple[str, int]]:
        found = list(listing(prefix))
        if prefix == layout.INDEX:
            monkeypatch.setattr(repository.tier, "list", listing)
            writer.add([entry(1, wanted)])
        return iter(found)

    monkeypatch.setattr(repository.tier, "list", add_meanwhile)
    repository.index.refresh()
    assert writer.known(wanted) == set(wanted)
    writer.close()


def test_a_part_that_goes_while_it_is_read_is_no_error(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """gc puts parts together: the new one comes, the old ones go."""
    other = Index(repository.tier, repository.keyring, repository.cache_dir / "other.sqlite")
    other.add([entry(1, ids(3))])
    (old,) = [key for key, _ in repository.tier.list(layout.INDEX)]
    get = repository.tier.get

    def replaced_meanwhile(key: str) -> bytes:
        if key == old:
            monkeypatch.setattr(repository.tier, "get", get)
            other.add([entry(1, ids(3))])
            repository.tier.delete(old)
        return get(key)

    monkeypatch.setattr(repository.tier, "get", replaced_meanwhile)
    repository.index.refresh()
    assert repository.index.known(ids(3)) == set(ids(3))
    other.close()


def test_a_listing_that_misses_the_old_part_and_the_new_one_takes_nothing_away(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing takes time: gc may delete what it has not come to, after it wrote what the listing has passed."""
    other = Index(repository.tier, repository.keyring, repository.cache_dir / "other.sqlite")
    other.add([entry(1, ids(3))])
    repository.index.refresh()
    (old,) = [key for key, _ in repository.tier.list(layout.INDEX)]
    other.add([entry(1, ids(3))])
    repository.tier.delete(old)
    listing = repository.tier.list

    def passes_it(prefix: str) -> Iterator[tuple[str, int]]:
        if prefix != layout.INDEX:
            return listing(prefix)
        monkeypatch.setattr(repository.tier, "list", listing)
        return iter(())

    monkeypatch.setattr(repository.tier, "list", passes_it)
    repository.index.refresh()
    assert repository.tier.list == listing
    assert repository.index.known(ids(3)) == set(ids(3))
    other.close()


def test_a_full_file_system_is_to_be_made_room_on(
    repository: Repository, pool: ThreadPoolExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(repository, pool, CHANGES, SIZE)

    def on_a_small_disk(path: Path) -> sqlite3.Connection:
        connection = index_file.open_file(path)
        connection.execute("PRAGMA max_page_count = 1")  # as many as it has
        return connection

    monkeypatch.setattr("vmcellar.repository.index.open_file", on_a_small_disk)
    fresh = Index(repository.tier, repository.keyring, tmp_path / "cache" / "index.sqlite")
    fresh.add([entry(1, ids(1))])
    with pytest.raises(PermanentError, match="full") as caught:
        fresh.add([entry(2, ids(3000))])
    assert "free space in" in caught.value.hint
    fresh.close()


def test_a_new_cache_file_that_is_locked_for_a_moment_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SQLite has it now and then of several that open one at once."""
    told: list[str] = []

    class Busy(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            told.append(sql)
            if "journal_mode" in sql and len(told) < 3:
                raise sqlite3.OperationalError("database is locked")
            return super().execute(sql, *values)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **more: connect(*given, **more, factory=Busy))
    index_file.open_file(tmp_path / "new.sqlite").close()
    assert told[:3] == ["PRAGMA journal_mode = WAL"] * 3
