"""What only a local directory can suffer: full, read-only, gone, strange files, a crash between its steps."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from tests.tiers.conftest import mounted, remount_read_only, unmount
from vmcellar.errors import PermanentError, TransientError
from vmcellar.memory import PAGE, BufferPool, helper_environment, keep_freed_memory
from vmcellar.progress import CancelToken
from vmcellar.tiers.base import NotFoundError
from vmcellar.tiers.local import LocalTier
from vmcellar.tiers.local_errors import translate
from vmcellar.tiers.local_reader import LocalReader


def make(folder: Path) -> LocalTier:
    folder.mkdir(exist_ok=True)
    return LocalTier(folder)


def test_a_full_disk_is_permanent_names_the_place_and_leaves_nothing(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "256k") as folder:
        tier = LocalTier(folder)
        tier.put("points/one", b"1")
        with pytest.raises(PermanentError, match="No space left") as caught:
            tier.put("data/aa/big", bytes(1 << 20))
        assert str(folder) in caught.value.message
        assert "free space" in caught.value.hint
        source = tmp_path / "source"
        source.write_bytes(bytes(1 << 20))
        with pytest.raises(PermanentError, match="No space left"):
            tier.adopt(source, "data/aa/big")
        assert source.exists()
        assert list(tier.staging_dir().iterdir()) == []
        assert list(tier.list("data/")) == []
        assert tier.get("points/one") == b"1"
        tier.put("points/two", b"2")


def test_a_read_only_file_system(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "256k") as folder:
        tier = LocalTier(folder)
        tier.put("points/one", b"1")
        remount_read_only(folder)
        with pytest.raises(PermanentError, match="Read-only"):
            tier.put("points/two", b"2")
        with pytest.raises(PermanentError, match="Read-only"):
            tier.delete("points/one")
        assert [key for key, _ in tier.list("points/")] == ["points/one"]


def test_an_unmounted_directory_never_looks_empty(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "256k") as folder:
        tier = LocalTier(folder)
        tier.put("points/one", b"1")
        unmount(folder)
        for call in (
            lambda: list(tier.list("points/")),
            lambda: tier.exists("points/one"),
            lambda: tier.get("points/one"),
            lambda: tier.put("points/two", b"2"),
        ):
            with pytest.raises(PermanentError, match="unmounted") as caught:
                call()
            assert not isinstance(caught.value, NotFoundError)
        assert list(folder.iterdir()) == []


def test_a_vanished_directory(tmp_path: Path) -> None:
    tier = make(tmp_path / "tier")
    (tmp_path / "tier").rmdir()
    with pytest.raises(PermanentError, match="No such file") as caught:
        list(tier.list("points/"))
    assert "mount" in caught.value.hint
    with pytest.raises(PermanentError, match="No such file"):
        tier.put("points/one", b"1")
    with pytest.raises(PermanentError, match="No such file"):
        LocalTier(tmp_path / "tier")


def test_a_file_is_no_tier(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PermanentError, match="not a directory"):
        LocalTier(tmp_path / "file")


def test_a_listing_with_something_strange_raises(tmp_path: Path) -> None:
    tier = make(tmp_path / "tier")
    tier.put("points/one", b"1")
    (tmp_path / "tier" / "points" / "link").symlink_to(tmp_path)
    with pytest.raises(PermanentError, match="points/link"):
        list(tier.list("points/"))


def test_a_listing_that_fails_in_the_middle_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = make(tmp_path / "tier")
    for key in ("data/aa/a", "data/bb/b"):
        tier.put(key, b"1")
    scandir = os.scandir

    def failing(folder: Path) -> object:
        if Path(folder).name == "bb":
            raise OSError(errno.EIO, "Input/output error")
        return scandir(folder)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", failing)  # pytest itself needs the real one to clean up
        with pytest.raises(TransientError, match="data/bb"):
            list(tier.list("data/"))


def test_an_adopt_that_died_before_its_last_step_is_finished_by_the_next(tmp_path: Path) -> None:
    tier = make(tmp_path / "tier")
    source = tier.staging_dir() / "pack"
    source.write_bytes(b"pack")
    (tmp_path / "tier" / "data" / "aa").mkdir(parents=True)
    os.link(source, tmp_path / "tier" / "data" / "aa" / "aaaa")
    tier.adopt(source, "data/aa/aaaa")
    assert not source.exists()
    assert tier.get("data/aa/aaaa") == b"pack"


def test_a_failing_fsync_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = make(tmp_path / "tier")
    tier.put("points/one", b"1")

    def failing(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(TransientError, match="points/two"):
            tier.put("points/two", b"2")
    assert [key for key, _ in tier.list("points/")] == ["points/one"]
    assert list(tier.staging_dir().iterdir()) == []


def test_every_step_is_made_durable_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = make(tmp_path / "tier")
    tier.staging_dir()
    steps: list[str] = []
    fsync, link = os.fsync, os.link

    def noting_fsync(handle: int) -> None:
        steps.append("sync " + str(Path(f"/proc/self/fd/{handle}").readlink()).removeprefix(str(tmp_path / "tier")))
        fsync(handle)

    def noting_link(source: Path, target: Path) -> None:
        steps.append("link")
        link(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "link", noting_link)
    tier.put("data/aa/aaaa", b"1")
    assert steps[0].startswith("sync /staging/put-")
    assert steps[1:] == ["sync ", "sync /data", "link", "sync /data/aa"]


def test_reads_go_around_the_page_cache(tmp_path: Path) -> None:
    tier = make(tmp_path / "tier")
    tier.put("data/aa/aaaa", os.urandom(4 * PAGE))
    with tier.open("data/aa/aaaa") as reader:
        assert isinstance(reader, LocalReader)
        if reader._direct < 0:
            pytest.skip("this file system has no O_DIRECT")
        assert fcntl.fcntl(reader._direct, fcntl.F_GETFL) & os.O_DIRECT
        with BufferPool(2 * PAGE).buffer() as buffer:
            os.close(reader._plain)
            reader.read_into(PAGE, buffer)
            reader._plain = os.open(tmp_path, os.O_RDONLY)
            assert bytes(buffer) == (tmp_path / "tier/data/aa/aaaa").read_bytes()[PAGE : 3 * PAGE]


def test_errors_are_classed() -> None:
    assert isinstance(translate(OSError(errno.EIO, ""), "x"), TransientError)
    assert isinstance(translate(OSError(errno.EDQUOT, ""), "x"), PermanentError)
    assert isinstance(translate(OSError(errno.ENOENT, ""), "x"), NotFoundError)
    assert "chown" in translate(OSError(errno.EACCES, ""), "x").hint


def test_pools_hand_out_again_and_wait_with_a_way_out() -> None:
    pool = BufferPool(PAGE, count=1)
    first = pool.acquire()
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Exception, match="stopped"):
        pool.acquire(cancel)
    pool.release(first)
    assert pool.acquire().obj is first.obj
    with pytest.raises(ValueError, match="not from this pool"):
        pool.release(memoryview(bytearray(1)))
    with pytest.raises(ValueError, match="multiple"):
        BufferPool(1000)


def test_memory_settings() -> None:
    assert keep_freed_memory() == keep_freed_memory()
    assert set(helper_environment()) == {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"}
