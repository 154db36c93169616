"""`restore_vm`, `verify_repository` and `recover_host` against a real server: what they do, and what turns them red."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from flows.parameters import Recover, RestoreVm, VerifyRepository
from flows.recover import recover_host
from flows.restore import restore_vm
from flows.verify import verify_repository
from lab import reference
from lab.guest import LabGuest
from tests.flows.seen import Seen
from tests.proof import subprocesses
from tests.proof.cellar import Cellar, job_runs
from vmcellar.errors import IntegrityError, PermanentError
from vmcellar.repository.scrub import ScrubReport

pytestmark = [pytest.mark.libvirt, pytest.mark.prefect]


def restore(cellar: Cellar, point: str, directory: Path, **more: Any) -> Any:
    return asyncio.run(
        restore_vm(RestoreVm(config=str(cellar.file), point=point, directory=str(directory), format="raw", **more))
    )


def verify(cellar: Cellar, point: str = "", *, deep: bool = True) -> ScrubReport:
    return asyncio.run(verify_repository(VerifyRepository(config=str(cellar.file), point=point, deep=deep)))


def damage_a_pack(cellar: Cellar) -> None:
    """Turn one byte in the middle of the largest data pack, as a bad sector would."""
    packs = (path for path in (cellar.base / "repository" / "data").rglob("*") if path.is_file())
    largest = max(packs, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.chmod(0o600)
    largest.write_bytes(data)


def test_restore_gives_every_byte_back(seen: Seen, cellar: Cellar, flow_guest: LabGuest, tmp_path: Path) -> None:
    point = cellar.backup(flow_guest)
    done = restore(cellar, f"{flow_guest.name}@latest", tmp_path / "out")
    images = {disk.target: disk.path for disk in done.report.disks}
    assert reference.mismatches(dict(cellar.reference(flow_guest)), images, "raw") == []
    assert (tmp_path / "out" / "domain.xml").exists()
    run = seen.flow_run(f"restore {flow_guest.name}@latest")
    assert run.state is not None
    assert run.state.is_completed()
    report = str(seen.artifacts(run)[f"restore-{flow_guest.name}"].data)
    assert f"point `{point.id}` restored" in report
    assert all(f"| {target} | " in report and f"`{path}`" in report for target, path in images.items())
    assert f"[all](/artifacts/key/restore-{flow_guest.name})" in report
    with pytest.raises(PermanentError, match="exist"):
        restore(cellar, point.id, tmp_path / "out")
    some = restore(cellar, point.id, tmp_path / "some", disks=("vdb",))
    assert [disk.target for disk in some.report.disks] == ["vdb"]


def test_damage_turns_verify_and_restore_red(seen: Seen, cellar: Cellar, flow_guest: LabGuest, tmp_path: Path) -> None:
    point = cellar.backup(flow_guest)
    assert verify(cellar).ok
    damage_a_pack(cellar)
    with pytest.raises(IntegrityError, match="1 damaged objects; the first: chunk"):
        verify(cellar)
    run = seen.flow_run("verify all points")
    assert run.state is not None
    assert run.state.is_failed()
    with pytest.raises(IntegrityError):
        verify(cellar, point.id)
    assert verify(cellar, point.id, deep=False).ok
    with pytest.raises(IntegrityError):
        restore(cellar, point.id, tmp_path / "strict")
    with pytest.raises(IntegrityError, match="1 lost ranges") as raised:
        restore(cellar, point.id, tmp_path / "best", best_effort=True)
    assert "lost-ranges.json" in raised.value.hint
    assert (tmp_path / "best" / "lost-ranges.json").exists()


def test_recover_settles_what_a_killed_process_left(seen: Seen, cellar: Cellar, flow_guest: LabGuest) -> None:
    ran = subprocesses.run(cellar, flow_guest.name, "--at", "vmcellar.backup.stages:export")
    assert ran.struck
    (left,) = cellar.config.state.glob("runs/*/*")
    kept = asyncio.run(recover_host(Recover(config=str(cellar.file), resume=True)))
    assert [(action["run_id"], action["action"]) for action in kept] == [(left.name, "resumable")]
    assert job_runs(flow_guest)
    actions = asyncio.run(recover_host(Recover(config=str(cellar.file))))
    assert (left.name, "abandoned") in {(action["run_id"], action["action"]) for action in actions}
    assert not left.exists()
    cellar.assert_nothing_left(flow_guest)
    run = seen.flow_run("recover all VMs")
    assert run.state is not None
    assert run.state.is_completed()
