"""A repository end to end: commit, read back, order of writes, several writers, lost caches."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from tests.repository.fakes import FixedKeyring
from tests.repository.writing import back_up, read_disk, rows_of, staged, store
from vmcellar.errors import IntegrityError, PermanentError, UsageError
from vmcellar.repository import config_object
from vmcellar.repository.diskmap import DiskMap
from vmcellar.repository.repository import Repository, make, unlock
from vmcellar.tiers.local import LocalTier

SIZE = 3 << 20
CHUNK = 64 << 10


def full_changes(seed: int = 1) -> list[tuple[int, bytes | int]]:
    dice = random.Random(seed)
    return [(0, dice.randbytes(1 << 20)), (1 << 20, b"text" * 1000), (2 << 20, 5000)]


def test_points_read_back_and_share_what_is_equal(repository: Repository, pool: ThreadPoolExecutor) -> None:
    image = bytearray(SIZE)
    changes = full_changes()
    first = back_up(repository, pool, changes, SIZE)
    for offset, content in changes:
        data = bytes(content) if isinstance(content, int) else content
        image[offset : offset + len(data)] = data
    before = bytes(image)
    more: list[tuple[int, bytes | int]] = [(CHUNK, b"x" * CHUNK), (5 * CHUNK, CHUNK)]
    second = back_up(repository, pool, more, SIZE, first)
    image[CHUNK : 2 * CHUNK] = b"x" * CHUNK
    image[5 * CHUNK : 6 * CHUNK] = bytes(CHUNK)
    assert read_disk(repository, first) == before
    assert read_disk(repository, second) == bytes(image)
    differ = list(repository.map(first.disks[0]).differences(repository.map(second.disks[0])))
    assert differ == [(CHUNK, CHUNK), (5 * CHUNK, CHUNK)]
    assert staged(repository) == []


def test_artifacts_come_back(repository: Repository, pool: ThreadPoolExecutor) -> None:
    point = back_up(repository, pool, full_changes(), SIZE)
    kernel, xml = point.artifact("kernel"), point.artifact("domain.xml")
    assert kernel is not None
    assert xml is not None
    assert repository.artifact(kernel) == bytes(range(256)) * 6000
    assert repository.artifact(xml) == b"<domain/>"


def test_another_process_reads_everything(repository: Repository, pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    point = back_up(repository, pool, full_changes(), SIZE)
    other = Repository(repository.tier, FixedKeyring(), repository.id, tmp_path / "other")
    found = other.point("web@latest")
    assert found == point
    assert read_disk(other, found) == read_disk(repository, point)
    other.close()


def test_a_point_is_found_by_prefix_and_by_vm(repository: Repository, pool: ThreadPoolExecutor) -> None:
    first = back_up(repository, pool, full_changes(), SIZE)
    second = back_up(repository, pool, [(0, b"n")], SIZE, first)
    other = back_up(repository, pool, full_changes(), SIZE, vm="db@home")
    assert repository.points_of("web") == [first, second]
    assert repository.point("web@latest") == second
    assert repository.point("db@home@latest") == other
    assert repository.point(second.id) == second
    assert repository.point(second.id[:-2]) == second
    with pytest.raises(UsageError, match="names 3 restore points"):
        repository.point("20")
    for wrong in ("nothing", "", "nobody@latest"):
        with pytest.raises(PermanentError, match=r"no restore point|has no restore point"):
            repository.point(wrong)


def test_nothing_is_committed_without_what_it_needs(repository: Repository, pool: ThreadPoolExecutor) -> None:
    point = back_up(repository, pool, full_changes(), SIZE)
    rows = rows_of(repository, [(0, b"never stored")])
    root, nodes = repository.map(point.disks[0]).replace(rows)
    disk = replace(point.disks[0], root=root.hex())
    new = replace(point, id="20300101T000000Z-00000001", disks=(disk,))
    with pytest.raises(IntegrityError, match="nothing was committed"):
        repository.commit({}, nodes, {}, new, pool)
    with pytest.raises(IntegrityError, match="nothing was committed"):
        repository.commit({}, {}, {}, replace(new, disks=(replace(disk, root="ab" * 32),)), pool)
    with pytest.raises(PermanentError, match="data/"):
        repository.commit({b"p" * 16: store(repository, [(0, b"z")])[0].rows}, nodes, {}, new, pool)
    assert repository.points() == [point]


def test_a_row_beyond_its_chunk_is_not_committed(repository: Repository, pool: ThreadPoolExecutor) -> None:
    point = back_up(repository, pool, full_changes(), SIZE)
    (pack,) = store(repository, [(0, b"short")])
    rows = rows_of(repository, [(0, b"short")])
    rows["length"] = 6
    root, nodes = repository.empty_map(SIZE).replace(rows)
    new = replace(point, id="20300101T000000Z-00000001", disks=(replace(point.disks[0], root=root.hex()),))
    with pytest.raises(IntegrityError, match="nothing was committed"):
        repository.commit({pack.id: pack.rows}, nodes, {}, new, pool)


def test_two_writers_commit_at_once(tier: LocalTier, pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    repositories = [Repository(tier, FixedKeyring(), b"r" * 16, tmp_path / "shared") for _ in range(2)]

    def work(number: int) -> list[str]:
        repository = repositories[number % 2]
        last = None
        for step in range(3):
            changes = full_changes(step) if last is None else [(step * CHUNK, bytes([number]) * CHUNK)]
            last = back_up(repository, pool, changes, SIZE, last, vm=f"vm{number}")
        return [point.id for point in repository.points_of(f"vm{number}")]

    with ThreadPoolExecutor(4) as threads:
        ids = list(threads.map(work, range(4)))
    for repository in repositories:
        assert sorted(point.id for point in repository.points()) == sorted(chain.from_iterable(ids))
        for point in repository.points():
            assert len(read_disk(repository, point)) == SIZE
        repository.close()


def test_the_index_cache_may_be_lost_or_garbage(
    repository: Repository, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    point = back_up(repository, pool, full_changes(), SIZE)
    image = read_disk(repository, point)
    for number, content in enumerate((b"", b"not a database" * 999)):
        folder = tmp_path / f"cache{number}"
        folder.mkdir()
        (folder / f"index-{repository.id.hex()}.sqlite").write_bytes(content)
        other = Repository(repository.tier, FixedKeyring(), repository.id, folder)
        assert read_disk(other, other.point("web@latest")) == image
        other.close()


def test_a_chunk_that_failed_a_check_is_no_target_of_deduplication(
    repository: Repository, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    back_up(repository, pool, full_changes(), SIZE)
    chunk = repository.keyring.chunk_id(b"text" * 1000)
    bad = repository.index.locate([chunk])[chunk]
    repository.index.note_damaged([bad])
    other = Repository(repository.tier, FixedKeyring(), repository.id, tmp_path / "other")
    other.index.refresh()
    for each in (repository, other):
        assert each.index.known([chunk]) == set()
        assert each.index.locate([chunk])[chunk] == bad
    back_up(other, pool, full_changes(), SIZE, vm="again")
    repository.index.refresh()
    assert repository.index.known([chunk]) == {chunk}
    assert repository.index.locate([chunk])[chunk].pack != bad.pack
    other.close()


def test_make_and_unlock(tier: LocalTier) -> None:
    repository_id = make(tier, b"a passphrase")
    assert unlock(tier, b"a passphrase")[1] == repository_id
    with pytest.raises(PermanentError, match="passphrase"):
        unlock(tier, b"another")
    with pytest.raises(PermanentError, match="already"):
        make(tier, b"a passphrase")


def test_no_repository(tier: LocalTier) -> None:
    with pytest.raises(PermanentError, match="holds no repository"):
        unlock(tier, b"x")


def test_an_init_that_died_half_way_is_gone_on_with(tier: LocalTier) -> None:
    make(tier, b"a passphrase")
    tier.delete("config")
    repository_id = make(tier, b"a passphrase")
    assert unlock(tier, b"a passphrase")[1] == repository_id
    assert len(list(tier.list("keys/"))) == 1


def test_every_flipped_bit_of_the_config_is_found(tier: LocalTier, tmp_path: Path) -> None:
    make(tier, b"a passphrase")
    data = tier.get("config")
    other = tmp_path / "hot" / "config"
    other.chmod(0o600)
    keyring, _ = unlock(tier, b"a passphrase")
    for place in range(len(data)):
        for bit in range(8):
            damaged = data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
            with pytest.raises((IntegrityError, PermanentError)):
                config_object.check(keyring, config_object.parse(damaged))
    for length in range(len(data)):
        with pytest.raises(IntegrityError):
            config_object.parse(data[:length])


def test_a_map_of_another_level_is_refused(repository: Repository, pool: ThreadPoolExecutor) -> None:
    point = back_up(repository, pool, full_changes(), SIZE)
    with pytest.raises(IntegrityError, match="level"):
        repository.map(replace(point.disks[0], level=3))
    assert isinstance(repository.map(point.disks[0]), DiskMap)
