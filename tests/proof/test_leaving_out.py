"""Paths of a guest that are left out: their files are zero in each point, and every other byte is the instant's.

The guest's disk is changed from outside, as its guest would (`lab/ossystem.py`), so that the change tracker sees what
it would. What may be zero is told by debugfs, which shares no code with what chose it. Where the files lie is told by
debugfs, too, but for the tests with the appliance: 20 s for each backup.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lab import reference
from lab.disks import MIB
from lab.filesystems import use_working_accelerator
from lab.guest import LabGuest
from lab.ossystem import SystemDisk, content
from lab.require import requires
from tests.proof.cellar import Cellar, Disks
from tests.proof.leaving import JOURNAL, LOGS, OLD, SIZE, SYSLOG, Debugfs, assert_point, back_up, blocks_of, fill, noise
from vmcellar.backup import leaving, stages
from vmcellar.backup.model import BackupRequest
from vmcellar.backup.source_check import differences
from vmcellar.crypto.recipient import PrivateKey
from vmcellar.errors import PermanentError
from vmcellar.progress import CancelToken
from vmcellar.repository import left_out
from vmcellar.repository.repository import Repository, make
from vmcellar.restore.report import RestoreTarget
from vmcellar.restore.restore import restore_point
from vmcellar.sources.base import PreviousDisk, SourceDisk
from vmcellar.sources.libvirt_disks import decide
from vmcellar.tiers.local import LocalTier

pytestmark = [pytest.mark.libvirt]

EVERY_GUEST = bool(os.environ.get("VMCELLAR_EVERY_GUEST"))


@pytest.fixture
def system(vm_tmp: Path, tmp_path: Path) -> SystemDisk:
    requires("root")
    return SystemDisk(vm_tmp, SIZE, fill(tmp_path / "tree"))


@pytest.fixture
def quiet(system: SystemDisk, make_guest: Callable[..., LabGuest]) -> LabGuest:
    made = make_guest((system.spec,), images={"vda": system.image})
    made.start(paused=True)
    return made


@pytest.fixture
def cellar(vm_tmp: Path) -> Cellar:
    return Cellar(vm_tmp / "cellar", {"limits": {"sample": 0.5}})


@pytest.fixture(params=["debugfs", "appliance"])
def told(request: pytest.FixtureRequest, system: SystemDisk, monkeypatch: pytest.MonkeyPatch) -> Debugfs:
    """Whose `files` say what is left out; where the appliance tells, it is to find the same."""
    found = Debugfs(system.model, (SYSLOG, JOURNAL, OLD))
    if request.param == "debugfs":
        monkeypatch.setattr(leaving, "_ask", found)
        return found
    if not EVERY_GUEST:
        pytest.skip("starts an appliance for each backup: VMCELLAR_EVERY_GUEST=1")
    requires("libguestfs")
    monkeypatch.setenv("LIBGUESTFS_BACKEND_SETTINGS", "")
    use_working_accelerator()
    return found


def test_files_that_are_renamed_moved_linked_and_deleted_between_points(
    system: SystemDisk, quiet: LabGuest, cellar: Cellar, told: Debugfs, tmp_path: Path
) -> None:
    first, expected = back_up(cellar, quiet)
    before = assert_point(cellar, first, expected, told.files)
    assert any("are left out: files there come back" in words for words in first.warnings)

    system.debugfs(f"link {OLD} /srv/old", f"unlink {OLD}", "link /srv/more /var/log/more", "unlink /srv/more")
    assert system.push(quiet) < MIB, "no block of their data changed"
    told.files = (SYSLOG, JOURNAL, "/var/log/more")
    renamed, expected = back_up(cellar, quiet)
    assert (renamed.kind, renamed.parent) == ("incremental", first.id)
    restored = tmp_path / "restored"
    restored.write_bytes(assert_point(cellar, renamed, expected, told.files))
    assert content(restored, "/srv/old", tmp_path / "file") == noise(2)
    assert content(restored, "/var/log/more", tmp_path / "file") != noise(4)

    gone = blocks_of(system.model, (SYSLOG,))
    (tmp_path / "new").write_bytes(noise(7))
    system.debugfs(f"rm {SYSLOG}", f"write {tmp_path / 'new'} /srv/new")
    assert gone & blocks_of(system.model, ("/srv/new",)), "its blocks hold a file that is kept now"
    system.debugfs(f"link {JOURNAL} /srv/system", f"sif {JOURNAL} links_count 2")
    system.push(quiet)
    told.files = ("/var/log/more",)
    reused, expected = back_up(cellar, quiet)
    assert (reused.kind, reused.parent) == ("incremental", renamed.id)
    restored.write_bytes(assert_point(cellar, reused, expected, told.files))
    assert content(restored, "/srv/new", tmp_path / "file") == noise(7)
    assert content(restored, JOURNAL, tmp_path / "file") == noise(1)

    again, expected = back_up(cellar, quiet)
    assert (again.kind, again.bytes_changed) == ("incremental", 0), "what stays left out costs nothing"
    assert_point(cellar, again, expected, told.files)
    assert not any("tracker" in words for words in again.warnings), "what is left out is not compared with the guest"
    assert cellar.restore(first.id)["vda"].read_bytes() == before, "an older point is what it was"


def test_a_list_of_paths_that_changed_reads_everything(quiet: LabGuest, cellar: Cellar, told: Debugfs) -> None:
    told.files = ()
    before, expected = back_up(cellar, quiet, paths=())
    assert_point(cellar, before, expected, ())
    told.files = (SYSLOG, JOURNAL, OLD)
    for paths, files in ((LOGS, told.files), ((*LOGS, "/srv/data"), (*told.files, "/srv/data")), ((), ())):
        told.files = files
        made, expected = back_up(cellar, quiet, paths=paths)
        assert (made.kind, made.reason) == ("full", "the paths of the guest that are left out changed")
        assert_point(cellar, made, expected, files)
    assert not any(disk.identity.endswith(left_out.MARK) for disk in cellar.point(made).disks)
    last, expected = back_up(cellar, quiet, paths=())
    assert last.kind == "incremental"
    assert_point(cellar, last, expected, ())


@pytest.fixture
def by_debugfs(system: SystemDisk, monkeypatch: pytest.MonkeyPatch) -> Debugfs:
    found = Debugfs(system.model, (SYSLOG, JOURNAL, OLD))
    monkeypatch.setattr(leaving, "_ask", found)
    return found


def test_when_nobody_can_tell_everything_is_kept_and_said(
    quiet: LabGuest, cellar: Cellar, by_debugfs: Debugfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(cellar, quiet)

    def fail(*_: object) -> None:
        raise PermanentError("libguestfs: no kernel")

    with monkeypatch.context() as patch:
        patch.setattr(leaving, "_ask", fail)
        made, expected = back_up(cellar, quiet)
    assert made.kind == "incremental"
    assert "/var/log: nothing is left out, all is in this point: libguestfs: no kernel" in made.warnings
    assert_point(cellar, made, expected, ())
    assert cellar.restore(made.id)["vda"].read_bytes() == expected["vda"].read_bytes()
    after, expected = back_up(cellar, quiet)
    assert after.kind == "incremental"
    assert_point(cellar, after, expected, by_debugfs.files)


def test_a_record_that_cannot_be_read_asks_for_everything(
    system: SystemDisk, quiet: LabGuest, cellar: Cellar, by_debugfs: Debugfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = back_up(cellar, quiet)
    system.debugfs(f"link {OLD} /srv/old", f"unlink {OLD}")
    system.push(quiet)
    by_debugfs.files = (SYSLOG, JOURNAL)
    with monkeypatch.context() as patch:
        patch.setattr(left_out, "of_point", lambda *_: None)
        made = cellar.backup(quiet, exclude_paths=LOGS)
        expected = cellar.reference(quiet)
    assert (made.kind, made.reason) == ("full", f"what point {first.id} left out of the guest's paths cannot be read")
    assert_point(cellar, made, expected, by_debugfs.files)


@pytest.mark.usefixtures("by_debugfs")
def test_a_writer_without_this_knowledge_takes_the_disk_for_another(quiet: LabGuest, cellar: Cellar) -> None:
    made, _ = back_up(cellar, quiet)
    (recorded,) = cellar.point(made).disks
    now = SourceDisk("vda", SIZE, left_out.unmarked(recorded.identity), "qcow2", tracked=True)
    assert recorded.identity != now.identity
    its_view = PreviousDisk("vda", recorded.identity, recorded.size)
    assert decide(now, SIZE, its_view, None, "").full_reason == "image replaced since the parent"
    with_it = replace(its_view, identity=now.identity)
    assert decide(now, SIZE, with_it, None, "").full_reason == ""


@pytest.mark.parametrize("dies_after", ["snapshot", "export"])
def test_a_run_that_died_goes_on_with_what_it_had_chosen(
    quiet: LabGuest, cellar: Cellar, by_debugfs: Debugfs, dies_after: str
) -> None:
    back_up(cellar, quiet)
    files, by_debugfs.files = by_debugfs.files, (SYSLOG,)
    request = BackupRequest(quiet.name, exclude_paths=LOGS)
    died = cellar.new_engine()
    with died.vm_lock(quiet.name):
        handle = stages.snapshot(died, request, CancelToken())
    expected: Disks = reference.of_job(quiet.domain, cellar.folder())
    if dies_after == "export":
        for part in handle.segments:
            stages.export(died, handle.run_id, part.target, part.number, lambda *_: None, CancelToken())
    by_debugfs.files = files  # it would choose otherwise now, and is not asked
    asked = len(by_debugfs.asked)
    made = cellar.backup(quiet, exclude_paths=LOGS)
    assert (made.run_id, len(by_debugfs.asked)) == (handle.run_id, asked)
    assert_point(cellar, made, expected, (SYSLOG,))
    cellar.assert_nothing_left(quiet)
    after, expected = back_up(cellar, quiet)
    assert_point(cellar, after, expected, files)


class Sealed(Cellar):
    """A repository in recipient mode: the host's own key reads no disk."""

    private = PrivateKey.generate()

    def __post_init__(self) -> None:
        """Make the repository with the recipient's key."""
        (self.base / "repository").mkdir(parents=True)
        make(LocalTier(self.base / "repository"), b"a passphrase of a test", [self.private.public])
        super().__post_init__()

    def restore(self, point_id: str, *, image_format: str = "raw") -> dict[str, Path]:
        """As the holder of the private key."""
        repository = Repository.open(self.config, self.private)
        target = RestoreTarget(self.folder() / "restored", image_format)  # type: ignore[arg-type]  # a format as text
        report = restore_point(repository, repository.point(point_id), target)
        return {disk.target: disk.path for disk in report.disks}


def test_in_recipient_mode_the_host_reads_what_its_parent_left_out(
    system: SystemDisk, quiet: LabGuest, vm_tmp: Path, by_debugfs: Debugfs
) -> None:
    cellar = Sealed(vm_tmp / "sealed")
    first, expected = back_up(cellar, quiet)
    assert_point(cellar, first, expected, by_debugfs.files)
    system.debugfs(f"link {OLD} /srv/old", f"unlink {OLD}")
    system.push(quiet)
    by_debugfs.files = (SYSLOG, JOURNAL)
    made, expected = back_up(cellar, quiet)
    assert (made.kind, made.parent) == ("incremental", first.id)
    assert_point(cellar, made, expected, by_debugfs.files)


@pytest.mark.usefixtures("by_debugfs")
def test_a_comparison_with_the_running_vm_skips_what_is_left_out(quiet: LabGuest, cellar: Cellar) -> None:
    made, _ = back_up(cellar, quiet)
    engine = cellar.new_engine()
    assert differences(engine, cellar.point(made), CancelToken()) == ()
