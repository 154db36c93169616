"""The way past the landing zone where things fail, and the folders of the landing zone where others may write."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lab.require import requires
from tests.backup.world import make_engine
from vmcellar import folders
from vmcellar.backup import place
from vmcellar.backup.direct import DirectPath
from vmcellar.backup.export import LANDED, PLACE_DIRECT
from vmcellar.backup.landing import LandingZone
from vmcellar.backup.model import CompressResult, ExportResult, PackHandle, SegmentHandle
from vmcellar.backup.rundir import RunDirectory, stage_file
from vmcellar.backup.runs import Run
from vmcellar.engine import Engine
from vmcellar.errors import CancelledError, PermanentError, TransientError
from vmcellar.memory import BufferPool
from vmcellar.progress import CancelToken, no_progress
from vmcellar.tiers import local

MIB = 1 << 20


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = make_engine(tmp_path)
    yield made
    made.repository.close()


def test_a_pool_that_takes_no_work_is_an_error_and_no_hang() -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    slots = threading.BoundedSemaphore(2)
    buffers = BufferPool(MIB)
    settings = SimpleNamespace(landing=SimpleNamespace(direct=MIB))
    engine: Any = SimpleNamespace(cpu=pool, direct_slots=slots, read_buffers=buffers, config=settings)
    writer: Any = SimpleNamespace(abort=lambda: None)
    path = DirectPath(engine, writer, no_progress)
    with pytest.raises(RuntimeError, match="after shutdown"):
        path.take([(b"c" * 32, buffer := buffers.acquire())], buffer)
    ended = threading.Thread(target=path.abort, daemon=True)
    ended.start()
    ended.join(60)
    assert not ended.is_alive()
    assert slots.acquire(blocking=False)
    assert slots.acquire(blocking=False), "its slot was not given back"


def test_a_resumed_run_knows_the_chunks_that_are_in_packs(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    rows = np.zeros(2, LANDED)
    rows["length"], rows["place"] = MIB, [PLACE_DIRECT, 0]
    rows["chunk"][0], rows["chunk"][1] = 7, 8
    directory.save_arrays(stage_file("vda", 0, "export", "npz"), {"rows": rows})
    directory.save(stage_file("vda", 0, "export"), ExportResult("vda", 0, 2 * MIB, 0, 0, MIB, 1.0, MIB))
    record: Any = SimpleNamespace(segments=(SegmentHandle("vda", 0, 1, 0),))
    capture: Any = None
    claims = Run(directory, record, capture).claims
    assert not any(claims.claim(bytes([chunk]) * 32, ("vda", 1)) for chunk in (7, 8))


def test_a_disk_has_no_more_connections_than_were_asked_for_and_who_waits_can_be_stopped(tmp_path: Path) -> None:
    record: Any = SimpleNamespace(segments=())
    capture: Any = None
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    run = Run(directory, record, capture)
    stopped = CancelToken()
    stopped.cancel()
    with ExitStack() as held:
        for target in ("vda", "vda", "vdb"):
            held.enter_context(run.connection(target, 2, stopped))
        with pytest.raises(CancelledError):
            held.enter_context(run.connection("vda", 2, stopped))
    with run.connection("vda", 2, stopped):
        pass  # they were given back


def test_a_pack_whose_folder_could_not_be_made_durable_is_placed_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = engine.pack_writer("run", "none")
    data = b"z" * 5000
    writer.append(engine.repository.keyring.chunk_id(data), data)
    (sealed,) = writer.finish()
    directory = engine.run_directory("run")
    directory.create()
    pack = PackHandle(sealed.id.hex(), sealed.key, str(sealed.path), sealed.size)
    directory.save(stage_file("vda", 0, "compress"), CompressResult("vda", 0, (pack,), 5000, sealed.size, 0.1))
    monkeypatch.setattr(engine, "run", lambda _: SimpleNamespace(directory=directory))
    sync, synced = folders.sync_folder, []
    errors = [OSError(errno.EIO, "no")]

    def failing_once(folder: Path) -> None:
        synced.append(folder)
        if "data" in folder.parts and errors:
            raise errors.pop()
        sync(folder)

    monkeypatch.setattr(local, "sync_folder", failing_once)
    with pytest.raises(TransientError):
        place.place(engine, "run", "vda", 0, no_progress, CancelToken())
    synced.clear()
    place.place(engine, "run", "vda", 0, no_progress, CancelToken())
    assert any("data" in folder.parts for folder in synced)
    assert not sealed.path.exists()


@pytest.mark.parametrize("what", ["a link", "others may write", "another owner"])
def test_a_landing_folder_that_is_not_ours_alone_is_refused(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "vmcellar"
    if what == "a link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir(mode=0o700)
        if what == "another owner":
            requires("root")
            os.chown(folder, 65534, 65534)
        else:
            folder.chmod(0o777)
    zone = LandingZone(folder / "instance", MIB)
    with pytest.raises(PermanentError, match="other users may change what lies in"):
        zone.writer(zone.file("run", "vda", 0))


def test_a_tmpfs_as_it_is_mounted_will_do_and_a_folder_that_another_made_in_it_will_not(tmp_path: Path) -> None:
    requires("root")
    folder = tmp_path / "tmpfs"
    folder.mkdir()
    folder.chmod(0o1777)
    zone = LandingZone(folder / "instance", MIB)
    zone.writer(zone.file("run", "vda", 0)).close()
    os.chown(folder / "instance", 65534, 65534)
    with pytest.raises(PermanentError, match="other users may change what lies in"):
        zone.writer(zone.file("run", "vda", 1))


def test_a_landing_never_writes_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    zone = LandingZone(tmp_path / "landing" / "instance", MIB)
    path = zone.file("run", "vda", 0)
    path.parent.mkdir(parents=True)
    path.symlink_to(victim)
    writer = zone.writer(path)
    writer.append(memoryview(b"guest bytes"))
    writer.close()
    assert victim.read_text() == "precious"
    assert path.read_bytes() == b"guest bytes"
