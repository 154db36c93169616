"""What backups leave in the catalog, and that none fails for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.backup.world import EmptyCapture, EmptySource, again, make_engine
from tests.faults.cellar import Cellar, stand_ins
from tests.tiers.faulty import FaultyTier
from vmcellar.backup import cataloguing, pipeline, recover, stages
from vmcellar.backup.entropy import EntropySampler, entropy
from vmcellar.backup.model import BackupRequest
from vmcellar.catalog.agreement import judge_segments
from vmcellar.config.catalogplace import CatalogPlace
from vmcellar.config.jobs import BackupJob
from vmcellar.config.model import Config
from vmcellar.engine import Engine
from vmcellar.errors import CancelledError, PermanentError, TransientError
from vmcellar.progress import CancelToken, no_progress
from vmcellar.sources.base import CaptureRequest, UnknownVmError

REQUEST = BackupRequest("web", job="nightly")


def rows(engine: Engine, table: str) -> list[dict[str, Any]]:
    with engine.catalog.reading() as connection:
        return [dict(row) for row in connection.exec_driver_sql(f"SELECT * FROM {table}").mappings()]  # noqa: S608


def test_a_run_is_noted_with_its_disks_and_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in stand_ins():
        monkeypatch.setattr(module, name, value)
    cellar = Cellar(tmp_path)
    cellar.make()
    cellar.write("web", 1)
    point = cellar.back_up("web")
    cellar.write("web", 2)
    cellar.back_up("web")
    engine = cellar.engine()
    run, later = sorted(rows(engine, "runs"), key=lambda row: row["started"])
    assert (run["id"], run["vm"], run["kind"], run["outcome"], run["point_id"], run["recorded_by"]) == (
        point.run_id, "web", "full", "done", point.id, "run",
    )  # fmt: skip
    assert run["finished"] >= run["started"]
    assert later["parent"] == point.id
    disks = [row for row in rows(engine, "run_disks") if row["run_id"] == point.run_id]
    for disk, made in zip(disks, point.disks, strict=True):
        assert {name: disk[name] for name in ("target", "size", "bytes_read", "bytes_new", "bytes_stored")} == {
            "target": made.target, "size": made.size, "bytes_read": made.bytes_read, "bytes_new": made.bytes_new,
            "bytes_stored": made.bytes_stored,
        }  # fmt: skip
        assert disk["tier"] == "hot"
        assert 3.9 < disk["entropy"] <= 8, "pieces are random, or repeat 16 bytes"
    stages = {
        (row["target"], row["stage"]): row["bytes"] for row in rows(engine, "stages") if row["run_id"] == run["id"]
    }
    assert stages["vda", "export"] == point.disks[0].bytes_read
    assert {stage for _, stage in stages} == {"export", "compress", "place", "verify"}
    assert point.id in {row["id"] for row in rows(engine, "points")}
    assert {row["run_id"] for row in rows(engine, "segments")} == {run["id"], later["id"]}
    assert judge_segments(engine.catalog, engine.repository.clock()) == 0, "a full and an incremental"


def test_each_segment_is_noted_and_how_often_its_stages_were_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, value in stand_ins():
        monkeypatch.setattr(module, name, value)
    cellar = Cellar(tmp_path)
    cellar.make()
    cellar.write("web", 1)
    engine = cellar.engine()
    flaky, no_more = FaultyTier(engine.repository.tier, fail_at=1, error=TransientError("no answer")), CancelToken()
    no_more.cancel()
    handle = stages.snapshot(engine, REQUEST, CancelToken())
    for segment in handle.segments:
        place = (engine, handle.run_id, segment.target, segment.number, no_progress)
        stages.export(*place, CancelToken())
        stages.compress(*place, CancelToken())
        if segment == handle.segments[0]:
            with pytest.raises(CancelledError):
                stages.place(*place, no_more)
            with monkeypatch.context() as patch:
                patch.setattr(engine.repository, "tier", flaky)
                with pytest.raises(TransientError):
                    stages.place(*place, CancelToken())
        stages.place(*place, CancelToken())
        stages.verify(*place, CancelToken())
    stages.release(engine, handle.run_id)
    point = stages.commit(engine, handle.run_id)
    assert flaky.fired
    noted = rows(engine, "segments")
    first = handle.segments[0]
    retries = {(row["target"], row["number"]): row["retries"] for row in noted}
    assert retries == {(s.target, s.number): int(s == first) for s in handle.segments}, "a stop is no failure"
    assert [(row["target"], row["stage"]) for row in rows(engine, "stages") if row["retries"]] == [
        (first.target, "place")
    ]
    for disk in point.disks:
        own = [row for row in noted if row["target"] == disk.target]
        for name in ("bytes_read", "bytes_zero", "bytes_changed", "bytes_known", "bytes_new", "bytes_stored"):
            assert sum(row[name] for row in own) == getattr(disk, name), name
    assert judge_segments(engine.catalog, engine.repository.clock()) == 0


def test_a_run_that_fails_is_noted_with_its_error(tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    assert isinstance(engine.source, EmptySource)
    engine.source.away = True
    with pytest.raises(TransientError):
        pipeline.run(engine, REQUEST)
    (run,) = rows(engine, "runs")
    assert (run["outcome"], run["error"], run["point_id"]) == ("failed", "web: libvirt is away", None)


def test_a_name_that_was_mistyped_is_no_vm_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An alert for it would never end. One that a job names counts: it was there, and should be."""

    def unknown(request: CaptureRequest) -> EmptyCapture:
        raise UnknownVmError(f"{request.vm}: no such VM")

    made = make_engine(tmp_path)
    jobs = (BackupJob(name="nightly", domains=("web", "db*")),)
    engine = Engine(made.config.model_copy(update={"backups": jobs}), made.repository, made.source)
    monkeypatch.setattr(engine.source, "begin", unknown)
    for request in (BackupRequest("wbe"), BackupRequest("db9"), BackupRequest("web"), REQUEST):
        with pytest.raises(UnknownVmError):
            pipeline.run(engine, request)
    assert [(run["vm"], run["job"]) for run in rows(engine, "runs")] == [("web", ""), ("web", "nightly")]


def test_a_run_that_is_stopped_is_noted_as_cancelled(tmp_path: Path) -> None:
    engine, stop = make_engine(tmp_path), CancelToken()
    stop.cancel()
    with pytest.raises(BaseException):  # noqa: B017, PT011  (whatever a stop raises)
        pipeline.run(engine, REQUEST, cancel=stop)
    assert [run["outcome"] for run in rows(engine, "runs")] == ["cancelled"]


def test_a_run_whose_process_died_is_noted_by_the_next_one(tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    assert isinstance(engine.source, EmptySource)
    engine.source.full = True
    with engine.repository.working_on("web"):
        stages.snapshot(engine, REQUEST, CancelToken())
    engine.source.held.clear()  # the VM was shut off as well
    after = again(engine)
    recover.recover(after, "web")
    (run,) = rows(after, "runs")
    assert (run["outcome"], run["vm"], run["job"]) == ("died", "web", "nightly")


def test_a_catalog_that_cannot_be_written_fails_no_backup(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = make_engine(tmp_path)
    (engine.state / "catalog.sqlite").write_bytes(b"damaged " * 1000)
    with caplog.at_level(logging.WARNING):
        point = pipeline.run(engine, REQUEST)
    assert engine.repository.point(point.id).verified
    assert "web: the catalog has no record of this run: catalog" in caplog.text


def on_server(add: Callable[[list[Any]], object]) -> Any:
    """What `_note` needs of an engine whose catalog lies on a PostgreSQL."""
    return SimpleNamespace(
        config=Config(catalog=CatalogPlace(url="postgresql://x@db/x")), catalog=SimpleNamespace(add=add)
    )


def test_a_server_that_never_answers_holds_up_no_backup(caplog: pytest.LogCaptureFixture) -> None:
    """Its process is stopped, or waits for a standby that is away: no timeout of a connection ends that."""
    answer = threading.Event()
    with caplog.at_level(logging.WARNING):
        cataloguing._note(on_server(lambda _rows: answer.wait()), "web", list, patience=0)
    assert "web: the catalog has no record of this run: its server gave no answer" in caplog.text
    (waiting,) = (thread for thread in threading.enumerate() if thread.name == "catalog-web")
    assert waiting.daemon, "the process may end"
    answer.set()
    waiting.join()


def test_a_server_that_answers_is_waited_for_and_its_refusal_fails_no_backup(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_rows: list[Any]) -> None:
        raise PermanentError("read only")

    noted: list[Any] = []
    with caplog.at_level(logging.WARNING):
        cataloguing._note(on_server(noted.extend), "web", lambda: ["row"])  # type: ignore[list-item]  # any row
        assert (noted, caplog.text) == (["row"], "")
        cataloguing._note(on_server(refuse), "web", list)
    assert "web: the catalog has no record of this run: read only" in caplog.text


def test_entropy_tells_text_from_what_is_encrypted() -> None:
    text = (b"the quick brown fox jumps over the lazy dog, again and again; " * 300)[: 16 << 10]
    assert entropy(memoryview(bytes(16 << 10))) == 0.0
    assert 3.5 < entropy(memoryview(text)) < 5.0
    assert entropy(memoryview(bytes(range(256)) * 64)) == pytest.approx(8.0)


def test_a_sampler_takes_the_first_chunks_and_then_few_and_weighs_them() -> None:
    sampler = EntropySampler()
    flat, mixed = memoryview(bytes(1 << 20)), memoryview(bytes(range(256)) * 4096)
    for _ in range(64):
        sampler.look(flat)
    for _ in range(64):
        sampler.look(mixed)
    assert sampler.found().weight == 128 << 20
    assert sampler.found().mean == pytest.approx(4.0)


def test_no_sample_is_no_figure() -> None:
    assert EntropySampler().found().mean is None
