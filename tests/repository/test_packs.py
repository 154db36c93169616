"""Packs: what goes in comes out, from many threads, and damage anywhere is found and named."""

from __future__ import annotations

import errno
import fcntl
import os
import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.repository.fakes import FixedKeyring
from tests.tiers.conftest import mounted
from vmcellar.crypto.keyring import RepositoryKeyring
from vmcellar.crypto.secrets import Secrets
from vmcellar.errors import IntegrityError, PermanentError, UsageError, VmcellarError
from vmcellar.memory import is_aligned
from vmcellar.progress import CancelToken, no_progress
from vmcellar.repository import layout
from vmcellar.repository.codec import Compression
from vmcellar.repository.packs import PackReader, PackWriter, SealedPack, groups, verify_pack
from vmcellar.tiers.local import LocalTier


def chunks(count: int, size: int, seed: int = 1) -> list[bytes]:
    dice = random.Random(seed)
    return [dice.randbytes(size // 2) + bytes(size // 2) if i % 2 else dice.randbytes(size) for i in range(count)]


def write(
    keyring: FixedKeyring, staging: Path, plains: list[bytes], kind: int = layout.KIND_DATA, pack_bytes: int = 1 << 22
) -> list[SealedPack]:
    writer = PackWriter(keyring, staging, kind, pack_bytes=pack_bytes)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda plain: writer.append(keyring.chunk_id(plain), plain), plains))
    return writer.finish()


def append_all(writer: PackWriter, keyring: FixedKeyring, plains: list[bytes]) -> None:
    for plain in plains:
        writer.append(keyring.chunk_id(plain), plain)


def adopt(tier: LocalTier, packs: list[SealedPack]) -> None:
    for pack in packs:
        tier.adopt(pack.path, pack.key)


@pytest.mark.parametrize("kind", [layout.KIND_DATA, layout.KIND_META])
def test_all_chunks_come_back_from_several_packs(
    tier: LocalTier, keyring: FixedKeyring, pool: ThreadPoolExecutor, kind: int
) -> None:
    plains = chunks(60, 300_000)
    packs = write(keyring, tier.staging_dir(), plains, kind)
    adopt(tier, packs)
    found: dict[bytes, bytes] = {}
    for pack in packs:
        assert verify_pack(tier, pack.key, keyring, pool) == len(pack.rows)
        with PackReader(tier, pack.key, keyring) as reader:
            assert np.array_equal(reader.toc(), pack.rows)
            for group in groups(reader.locations()):
                found.update({location.chunk: plain for location, plain in reader.read_group(group)})
                assert all(found[location.chunk] == lent for location, lent in reader.lend_group(group))
            one = reader.locations()[-1]
            assert reader.read(one) == found[one.chunk]
    assert len(packs) > 2
    assert found == {keyring.chunk_id(plain): plain for plain in plains}
    assert not list(tier.staging_dir().iterdir())


def test_what_does_not_shrink_is_stored_raw(tier: LocalTier, keyring: FixedKeyring) -> None:
    (pack,) = write(keyring, tier.staging_dir(), [random.Random(2).randbytes(5000), bytes(5000)])
    methods = {int(row["length"]) - int(row["stored"]) + 16 == 0: int(row["method"]) for row in pack.rows}
    assert methods == {True: layout.METHOD_RAW, False: layout.METHOD_ZSTD}
    assert pack.size == pack.path.stat().st_size == 4096 * 2


def test_every_flipped_bit_and_every_cut_is_found(
    tier: LocalTier, keyring: FixedKeyring, pool: ThreadPoolExecutor
) -> None:
    (pack,) = write(keyring, tier.staging_dir(), [b"first" * 10, b"second" * 10])
    whole = pack.path.read_bytes()
    used = [*range(400), *range(len(whole) - 80, len(whole))]
    path = tier.path / "data" / pack.id.hex()[:2] / pack.id.hex()
    path.parent.mkdir(parents=True)

    def check(data: bytes) -> None:
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match=pack.id.hex()):
            verify_pack(tier, pack.key, keyring, pool)

    for place in [*used, 2000]:
        for bit in range(8):
            check(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
    for length in (0, 1, 63, 64, 127, 128, 4095, len(whole) - 1):
        check(whole[:length])
    check(whole + bytes(4096))
    path.write_bytes(whole)
    assert verify_pack(tier, pack.key, keyring, pool) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": lambda method: 1 - method},
        {"method": lambda _method: 9},
        {"length": lambda length: length - 1},
        {"length": lambda length: length + 1},
        {"stored": lambda stored: stored - 1},
        {"stored": lambda _stored: 3},
        {"ordinal": lambda ordinal: 1 - ordinal},
        {"chunk": lambda _chunk: b"w" * 32},
    ],
)
@pytest.mark.parametrize("number", [0, 1])
def test_what_is_lent_is_checked_as_what_is_given(
    tier: LocalTier, number: int, wrong: Mapping[str, Callable[[Any], Any]]
) -> None:
    """Of a raw chunk and a compressed one, with the real cipher; each lent chunk begins on a page."""
    keyring = RepositoryKeyring(tier, Secrets.random())
    writer = PackWriter(keyring, tier.staging_dir())
    plains = chunks(2, 300_000)
    for plain in plains:
        writer.append(keyring.chunk_id(plain), plain)
    (pack,) = writer.finish()
    adopt(tier, [pack])
    with PackReader(tier, pack.key, keyring) as reader:
        (group,) = groups(reader.locations())
        lent = [(bytes(plain), is_aligned(plain)) for _, plain in reader.lend_group(group)]
        assert lent == [(plain, True) for plain in plains]
        changed = {name: change(getattr(group.objects[number], name)) for name, change in wrong.items()}
        objects = list(group.objects)
        objects[number] = objects[number]._replace(**changed)
        with pytest.raises(IntegrityError, match=objects[number].chunk.hex()):
            list(reader.lend_group(replace(group, objects=tuple(objects))))


def test_a_pack_under_another_name_is_found(tier: LocalTier, keyring: FixedKeyring, pool: ThreadPoolExecutor) -> None:
    one, two = (write(keyring, tier.staging_dir(), [text])[0] for text in (b"one", b"two"))
    tier.adopt(one.path, two.key)
    with pytest.raises(IntegrityError, match=two.key):
        verify_pack(tier, two.key, keyring, pool)


def test_a_chunk_with_a_wrong_id_is_found_and_named(
    tier: LocalTier, keyring: FixedKeyring, pool: ThreadPoolExecutor
) -> None:
    writer = PackWriter(keyring, tier.staging_dir())
    writer.append(b"w" * 32, b"content")
    packs = writer.finish()
    adopt(tier, packs)
    with pytest.raises(IntegrityError, match=(b"w" * 32).hex()):
        verify_pack(tier, packs[0].key, keyring, pool)


def test_abort_leaves_nothing(tier: LocalTier, keyring: FixedKeyring) -> None:
    writer = PackWriter(keyring, tier.staging_dir(), pack_bytes=1 << 20)
    for plain in chunks(8, 400_000):
        writer.append(keyring.chunk_id(plain), plain)
    assert len(list(tier.staging_dir().iterdir())) > 1
    writer.abort()
    assert not list(tier.staging_dir().iterdir())


def test_a_cancelled_check_stops(tier: LocalTier, keyring: FixedKeyring, pool: ThreadPoolExecutor) -> None:
    packs = write(keyring, tier.staging_dir(), [b"one"])
    adopt(tier, packs)
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(VmcellarError, match="stopped"):
        verify_pack(tier, packs[0].key, keyring, pool, no_progress, cancel)


def test_a_missing_staging_folder_is_a_clear_error(keyring: FixedKeyring, tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="nowhere"):
        PackWriter(keyring, tmp_path / "nowhere").append(b"i" * 32, b"x")


@pytest.mark.parametrize("text", ["zstd:0", "zstd:20", "lz4", "zstd", "zstd:-1"])
def test_unknown_compression_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Compression.parse(text)


def test_compression_forms() -> None:
    assert Compression.parse("none").level is None
    assert Compression.parse("zstd:7").level == 7
    assert Compression.parse("zstd:auto").level == Compression().level


def test_a_full_disk_is_permanent_and_leaves_nothing(keyring: FixedKeyring, tmp_path: Path) -> None:
    """On a real tmpfs of 6 MiB; older kernels have no O_DIRECT there, so this also runs the buffered way."""
    with mounted(tmp_path / "small", "6m") as folder:
        writer = PackWriter(keyring, folder, pack_bytes=5 << 20)
        plains = chunks(32, 1 << 20, seed=5)[::2]
        with pytest.raises(PermanentError, match="No space left") as caught:
            append_all(writer, keyring, plains)
        assert "free space" in caught.value.hint
        writer.abort()
        assert list(folder.iterdir()) == []


def test_a_file_system_without_direct_writes_is_written_through_the_cache(
    tier: LocalTier, keyring: FixedKeyring, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some file systems do it: O_DIRECT opens, and the first write says EINVAL."""
    pwrite = os.pwrite

    def refusing(file: int, data: memoryview, offset: int) -> int:
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return pwrite(file, data[:100_000], offset)

    monkeypatch.setattr(os, "pwrite", refusing)
    packs = write(keyring, tier.staging_dir(), chunks(10, 300_000))
    adopt(tier, packs)
    assert sum(verify_pack(tier, pack.key, keyring, pool) for pack in packs) == 10
