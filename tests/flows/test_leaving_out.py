"""A job that leaves out paths, through its flow: what the report says, and what the next run reads.

Where the files lie is told by debugfs, or, with VMCELLAR_EVERY_GUEST=1, by libguestfs's appliance (20 s per backup).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.backup import backup_job
from flows.parameters import BackupJob
from lab.filesystems import use_working_accelerator
from lab.guest import LabGuest
from lab.ossystem import SystemDisk
from lab.require import requires
from tests.flows.conftest import CellarFactory
from tests.flows.seen import Seen
from tests.proof.cellar import Cellar
from tests.proof.leaving import JOURNAL, LOGS, OLD, SIZE, SYSLOG, Debugfs, assert_point, fill
from vmcellar.backup import leaving
from vmcellar.backup.model import PointSummary

pytestmark = [pytest.mark.libvirt, pytest.mark.prefect]

EVERY_GUEST = bool(os.environ.get("VMCELLAR_EVERY_GUEST"))


def run_job(cellar: Cellar, *, keep_paths: bool = False) -> PointSummary:
    (point,) = asyncio.run(backup_job(BackupJob(config=str(cellar.file), job="logs", keep_paths=keep_paths)))
    return point


@pytest.mark.parametrize("teller", ["debugfs", "appliance"])
def test_a_job_leaves_its_paths_out_and_says_so(
    seen: Seen,
    make_cellar: CellarFactory,
    make_guest: Callable[..., LabGuest],
    vm_tmp: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    teller: str,
) -> None:
    requires("root")
    system = SystemDisk(vm_tmp, SIZE, fill(tmp_path / "tree"))
    told = Debugfs(system.model, (SYSLOG, JOURNAL, OLD))
    if teller == "debugfs":
        monkeypatch.setattr(leaving, "_ask", told)
    elif not EVERY_GUEST:
        pytest.skip("starts an appliance for each backup: VMCELLAR_EVERY_GUEST=1")
    else:
        requires("libguestfs")
        monkeypatch.setenv("LIBGUESTFS_BACKEND_SETTINGS", "")
        use_working_accelerator()
    guest = make_guest((system.spec,), images={"vda": system.image})
    guest.start(paused=True)
    job = {"name": "logs", "domains": [guest.name], "exclude": [f"path:{LOGS[0]}"]}
    cellar = make_cellar(backups=[job])

    first = run_job(cellar)
    assert_point(cellar, first, cellar.reference(guest), told.files)
    report = str(seen.artifacts(seen.flow_run(f"backup {guest.name} auto"))[f"backup-{guest.name}"].data)
    assert "MiB of 3 files are left out: files there come back with their names and sizes" in report

    system.debugfs(f"link {OLD} /srv/old", f"unlink {OLD}")
    system.push(guest)
    told.files = (SYSLOG, JOURNAL)
    second = run_job(cellar)
    assert (second.kind, second.parent) == ("incremental", first.id)
    assert_point(cellar, second, cellar.reference(guest), told.files)

    kept = run_job(cellar, keep_paths=True)
    assert kept.kind == "full"
    assert_point(cellar, kept, cellar.reference(guest), ())
    cellar.assert_nothing_left(guest)
