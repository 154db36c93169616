"""The NBD reader against a real qemu-nbd: data, extents, dirty bitmaps, limits, and every way a server can fail."""

from __future__ import annotations

import gc
import random
import signal
import subprocess
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sources.nbd_server import image, serve
from vmcellar.errors import CancelledError, PermanentError, TransientError
from vmcellar.memory import BufferPool
from vmcellar.progress import CancelToken
from vmcellar.sources.base import Extent
from vmcellar.sources.nbd import DIRTY_BITMAP, ExportReader

KIB = 1 << 10
MIB = 1 << 20
ODD_SIZE = 9 * MIB + 5 * KIB + 512
"""No multiple of 64 KiB, nor of 4 KiB."""


def make_raw(path: Path, size: int) -> bytes:
    data = random.Random(size).randbytes(size)
    path.write_bytes(data)
    return data


def qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *arguments], check=True, capture_output=True)


def qemu_io(path: Path, *commands: str) -> None:
    flags = [part for command in commands for part in ("-c", command)]
    subprocess.run(["qemu-io", "-f", "qcow2", *flags, path], check=True, capture_output=True)


def pieces(size: int, length: int = MIB) -> Iterator[tuple[int, int]]:
    for offset in range(0, size, length):
        yield offset, min(length, size - offset)


def read_all(reader: ExportReader, size: int, length: int = MIB) -> bytes:
    found = bytearray()

    def sink(offset: int, data: memoryview) -> None:
        assert offset == len(found), "pieces come in the order they were asked for"
        found.extend(data)

    reader.read(pieces(size, length), BufferPool(1 << 20), sink)
    return bytes(found)


@pytest.mark.parametrize("size", [512, 64 * KIB, ODD_SIZE])
def test_reads_every_byte_of_disks_of_any_size(tmp_path: Path, size: int) -> None:
    data = make_raw(tmp_path / "disk", size)
    with serve(tmp_path / "s", image(tmp_path / "disk")) as server, ExportReader(server.uri) as reader:
        assert reader.size == size
        assert read_all(reader, size) == data


def test_an_empty_disk_is_opened_without_a_priming_read(tmp_path: Path) -> None:
    (tmp_path / "disk").touch()
    with serve(tmp_path / "s", image(tmp_path / "disk")) as server, ExportReader(server.uri) as reader:
        assert reader.size == 0
        assert list(reader.extents()) == []


def test_a_disk_of_4_kib_sectors(tmp_path: Path) -> None:
    data = make_raw(tmp_path / "disk", 3 * MIB + 8 * KIB)
    sectors = {"driver": "blkdebug", "align": 4096, "image": image(tmp_path / "disk")}
    with serve(tmp_path / "s", sectors) as server, ExportReader(server.uri) as reader:
        assert read_all(reader, len(data)) == data
        assert sum(extent.length for extent in reader.extents()) == len(data)


def test_requests_stay_within_the_servers_largest(tmp_path: Path) -> None:
    data = make_raw(tmp_path / "disk", 2 * MIB + 512)
    limited = {"driver": "blkdebug", "max-transfer": 64 * KIB, "image": image(tmp_path / "disk")}
    with serve(tmp_path / "s", limited) as server, ExportReader(server.uri) as reader:
        assert reader.largest_request == 64 * KIB
        assert read_all(reader, len(data)) == data


def test_buffers_go_with_their_pool_once_all_is_read(tmp_path: Path) -> None:
    make_raw(tmp_path / "disk", 2 * MIB)
    limited = {"driver": "blkdebug", "max-transfer": 64 * KIB, "image": image(tmp_path / "disk")}
    read: list[weakref.ref[object]] = []
    with serve(tmp_path / "s", limited) as server, ExportReader(server.uri) as reader:
        reader.read(pieces(2 * MIB), BufferPool(MIB), lambda _offset, data: read.append(weakref.ref(data.obj)))
    gc.collect()
    assert len(read) == 2
    assert [buffer() for buffer in read] == [None, None]


def test_extents_are_gapless_and_merged(tmp_path: Path) -> None:
    disk = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", disk, "5G")
    qemu_io(disk, "write -P 1 0 64k", "write -P 2 64k 64k", "write -P 3 3G 1M", "write -z 4G 1M")
    with serve(tmp_path / "s", image(disk, "qcow2")) as server, ExportReader(server.uri) as reader:
        found = list(reader.extents())
        part = list(reader.extents(offset=64 * KIB, length=128 * KIB))
    assert found == [
        Extent(0, 128 * KIB, False),
        Extent(128 * KIB, (3 << 30) - 128 * KIB, True),
        Extent(3 << 30, MIB, False),
        Extent((3 << 30) + MIB, (2 << 30) - MIB, True),
    ]
    assert part == [Extent(64 * KIB, 64 * KIB, False), Extent(128 * KIB, 64 * KIB, True)]


def test_dirty_and_zeroed_ranges_are_dirty(tmp_path: Path) -> None:
    """Pitfall 1 begins where a reader leaves out what is dirty and a hole."""
    disk = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", disk, "64M")
    qemu_io(disk, "write -P 1 0 8M")
    qemu_img("bitmap", "--add", disk, "changes")
    qemu_io(disk, "write -P 2 1M 64k", "write -z 2M 1M", "discard 4M 1M", "write -P 3 40M 1k")
    with (
        serve(tmp_path / "s", image(disk, "qcow2"), "changes") as server,
        ExportReader(server.uri, contexts=(DIRTY_BITMAP + "changes",)) as reader,
    ):
        assert list(reader.extents(DIRTY_BITMAP + "changes")) == [
            Extent(MIB, 64 * KIB),
            Extent(2 * MIB, MIB),
            Extent(4 * MIB, MIB),
            Extent(40 * MIB, 64 * KIB),
        ]


def test_scattered_dirty_bitmap_with_many_extents(tmp_path: Path) -> None:
    disk = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", disk, "4G")
    qemu_img("bitmap", "--add", disk, "changes")
    places = sorted(random.Random(1).sample(range(0, 65536, 2), 3000))
    qemu_io(disk, *(f"write -q -z {place * 64}k 64k" for place in places))
    with (
        serve(tmp_path / "s", image(disk, "qcow2"), "changes") as server,
        ExportReader(server.uri, contexts=(DIRTY_BITMAP + "changes",)) as reader,
    ):
        found = list(reader.extents(DIRTY_BITMAP + "changes"))
    assert found == [Extent(place * 64 * KIB, 64 * KIB) for place in places]


def test_a_bitmap_that_is_not_exported_is_named(tmp_path: Path) -> None:
    make_raw(tmp_path / "disk", MIB)
    with (
        serve(tmp_path / "s", image(tmp_path / "disk")) as server,
        ExportReader(server.uri, contexts=(DIRTY_BITMAP + "gone",), disk="web: vda") as reader,
        pytest.raises(PermanentError, match=r"web: vda.*qemu:dirty-bitmap:gone"),
    ):
        list(reader.extents(DIRTY_BITMAP + "gone"))


def test_a_server_killed_in_mid_read_is_transient(tmp_path: Path) -> None:
    make_raw(tmp_path / "disk", 16 * MIB)
    with serve(tmp_path / "s", image(tmp_path / "disk")) as server:
        reader = ExportReader(server.uri, disk="web: vda")

        def kill(_offset: int, _data: memoryview) -> None:
            server.process.kill()
            server.process.wait()

        with pytest.raises(TransientError, match="web: vda"):
            reader.read(pieces(16 * MIB), BufferPool(1 << 20), kill)
        reader.close()


def test_a_hanging_server_is_given_up_after_the_time_limit(tmp_path: Path) -> None:
    make_raw(tmp_path / "disk", 16 * MIB)
    with serve(tmp_path / "s", image(tmp_path / "disk")) as server:
        reader = ExportReader(server.uri, disk="web: vda", timeout=0.5)
        with pytest.raises(TransientError, match="said nothing"):
            reader.read(pieces(16 * MIB), BufferPool(1 << 20), lambda _o, _d: server.send(signal.SIGSTOP))


def test_no_server_is_transient(tmp_path: Path) -> None:
    with pytest.raises(TransientError, match="connecting"):
        ExportReader(f"nbd+unix:///?socket={tmp_path}/nothing")


def test_an_unreadable_sector_names_disk_and_place(tmp_path: Path) -> None:
    make_raw(tmp_path / "disk", 16 * MIB)
    rule = {"event": "none", "iotype": "read", "errno": 5, "sector": 10 * MIB // 512, "once": False}
    broken = {"driver": "blkdebug", "inject-error": [rule], "image": image(tmp_path / "disk")}
    with (
        serve(tmp_path / "s", broken) as server,
        ExportReader(server.uri, disk="web: vda") as reader,
        pytest.raises(PermanentError, match=f"web: vda: reading {MIB} bytes at byte {10 * MIB}"),
    ):
        reader.read(pieces(16 * MIB), BufferPool(1 << 20), lambda _o, _d: None)


def test_cancel_stops_a_hanging_read(tmp_path: Path) -> None:
    make_raw(tmp_path / "disk", 16 * MIB)
    cancel = CancelToken()
    with serve(tmp_path / "s", image(tmp_path / "disk")) as server, ExportReader(server.uri) as reader:

        def stop(_offset: int, _data: memoryview) -> None:
            server.send(signal.SIGSTOP)
            cancel.cancel()

        with pytest.raises(CancelledError):
            reader.read(pieces(16 * MIB), BufferPool(1 << 20), stop, cancel)


def test_what_the_sink_raises_comes_out_and_buffers_are_not_written_later(tmp_path: Path) -> None:
    make_raw(tmp_path / "disk", 16 * MIB)
    pool = BufferPool(1 << 20)
    with serve(tmp_path / "s", image(tmp_path / "disk")) as server, ExportReader(server.uri) as reader:

        def full(_offset: int, _data: memoryview) -> None:
            raise PermanentError("landing zone full")

        with pytest.raises(PermanentError, match="landing zone full"):
            reader.read(pieces(16 * MIB), pool, full)
        assert pool.acquire().tobytes() == bytes(MIB), "buffers that were in flight never come back to the pool"


@pytest.mark.parametrize("request_", [(0, 0), (0, MIB + 1), (MIB - 512, 1024), (-512, 512)])
def test_a_request_outside_the_disk_or_the_buffer_is_refused(tmp_path: Path, request_: tuple[int, int]) -> None:
    make_raw(tmp_path / "disk", MIB)
    with (
        serve(tmp_path / "s", image(tmp_path / "disk")) as server,
        ExportReader(server.uri) as reader,
        pytest.raises(ValueError, match="from a disk of"),
    ):
        reader.read([request_], BufferPool(1 << 20), lambda _o, _d: None)


def test_four_readers_at_once(tmp_path: Path) -> None:
    data = make_raw(tmp_path / "disk", ODD_SIZE)
    with serve(tmp_path / "s", image(tmp_path / "disk")) as server:
        readers = [ExportReader(server.uri) for _ in range(4)]
        assert all(read_all(reader, ODD_SIZE, 64 * KIB) == data for reader in readers)
        for reader in readers:
            reader.close()
            reader.close()
