"""What a restore refuses or notices without a VM at hand: volumes in use, names that mean more, a guest that waits."""

from __future__ import annotations

import dataclasses
import io
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import libvirt
import pytest
from PIL import Image

from tests.restore.test_define import archive
from tests.restore.test_onto import NoVolumes, disk_at
from tests.restore.world import World
from vmcellar.config.drill import Drill
from vmcellar.errors import IntegrityError, PermanentError, TransientError, UsageError
from vmcellar.progress import CancelToken, no_progress
from vmcellar.repository.evidence import SCREENSHOT_MAX
from vmcellar.restore import define, drill, drill_domain, file_systems, in_use, rbd_images, serve_notes
from vmcellar.restore.boot import Booter
from vmcellar.restore.boot_journal import Boot
from vmcellar.restore.bring_back import Wanted, run_restore
from vmcellar.restore.destinations import Destination, find_destination
from vmcellar.restore.domain_xml import RestoredFiles
from vmcellar.restore.drill_alive import Life, Watch
from vmcellar.restore.drill_copy import Copy, judge_reads
from vmcellar.restore.in_use import LibvirtMachines, NoMachines, claimed
from vmcellar.restore.onto import restore_onto
from vmcellar.restore.serve_notes import ReadNotes
from vmcellar.tiers.base import NotFoundError

VOLUME = "<domain><devices><disk type='volume'><source pool='p' volume='v'/></disk></devices></domain>"


class SavedVm:
    """A VM that was saved with its memory; its disk is a volume of a pool, which knows it or does not."""

    def __init__(self, path: str) -> None:
        self._path = path

    def name(self) -> str:
        return "web"

    def XMLDesc(self) -> str:  # noqa: N802  (libvirt's name)
        return VOLUME

    def isActive(self) -> bool:  # noqa: N802
        return False

    def hasManagedSaveImage(self) -> bool:  # noqa: N802
        return True

    def connect(self) -> Any:
        return SimpleNamespace(storagePoolLookupByName=lambda _pool: self)

    def storageVolLookupByName(self, _volume: str) -> Any:  # noqa: N802
        if not self._path:
            raise libvirt.libvirtError("no pool")
        return SimpleNamespace(path=lambda: self._path)


def test_a_volume_of_a_vm_that_was_saved_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_use, "_chain", lambda top: [Path(top)])
    image = tmp_path / "v"
    image.touch()
    (tmp_path / "other").touch()
    disk, rbd = Destination("v", "file", "raw", image), Destination("v", "rbd", "raw", None, ("pool", "v"))
    for path, used, wanted in [
        (str(image), disk, True), (str(tmp_path / "other"), disk, False), ("pool/v", rbd, True), ("pool/w", rbd, False)
    ]:  # fmt: skip
        assert bool(list(LibvirtMachines([SavedVm(path)]).users(used))) == wanted
    with pytest.raises(PermanentError, match="cannot be told"):
        list(LibvirtMachines([SavedVm("")]).users(disk))


def test_two_restores_onto_one_image_under_two_names_and_of_two_users(world: World, tmp_path: Path) -> None:
    """Neither the names nor the journals tell that it is one file; the lock on it does."""
    point = world.add({"vda": b"x" * 4096, "vdb": b"y" * 4096})
    path, other = tmp_path / "a.raw", tmp_path / "b.raw"
    path.write_bytes(bytes(4096))
    other.hardlink_to(path)
    with claimed(disk_at(path)), pytest.raises(PermanentError, match="another restore is writing onto it"):
        restore_onto(world.repository, point, {"vda": disk_at(other)}, tmp_path / "state2", NoMachines())
    restore_onto(world.repository, point, {"vda": disk_at(other)}, tmp_path / "state2", NoMachines())
    assert path.read_bytes() == b"x" * 4096
    both = {"vda": disk_at(path), "vdb": disk_at(other)}
    with pytest.raises(UsageError, match="for vda and for vdb"):
        restore_onto(world.repository, point, both, tmp_path / "state2", NoMachines())


@pytest.mark.parametrize("words", ["rbd:pool/namespace/image", "rbd:pool/image@snapshot"])
def test_an_rbd_namespace_or_snapshot_makes_no_image_of_that_name(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmcellar.restore.rbd_images.make_missing", lambda *made: pytest.fail(str(made)))
    with pytest.raises(UsageError, match="namespace or a snapshot"):
        find_destination(words, 512, None, NoVolumes())


def test_an_rbd_image_of_another_cluster_is_not_the_vms(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host may know two clusters, with a pool and an image of the same names in each."""

    @contextmanager
    def pool(*_: str) -> Iterator[tuple[object, object, object]]:
        written = "[v2:10.0.0.10:3300/0,v1:10.0.0.10:6789/0] mon-b:6789 [fd00::1]"
        yield None, SimpleNamespace(conf_get=lambda _name: written), None

    monkeypatch.setattr(rbd_images, "_pool", pool)
    for hosts in (["10.0.0.10"], ["elsewhere", "mon-b"], ["fd00::1"]):
        rbd_images.refuse_other_cluster("pool", "web", hosts)
    for hosts in (["10.0.0.1"], ["mon"], ["fd00::2"]):
        with pytest.raises(PermanentError, match="lies in the cluster of"):
            rbd_images.refuse_other_cluster("pool", "web", hosts)


def test_a_definition_that_fails_for_a_moment_is_not_hidden_by_a_second_try(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flow tries again what is transient, and would then say that the files exist already."""

    def fails(*_: object, **__: object) -> None:
        raise TransientError("libvirt went away")

    monkeypatch.setattr(define, "check_name_free", lambda *_: None)
    monkeypatch.setattr(define, "define_domain", fails)
    point = world.add({"vda": b"x" * 4096})
    wanted = Wanted(tmp_path / "new", "raw", (), best_effort=False, define="web2")
    with pytest.raises(PermanentError, match=r"is restored to .*, but web2 could not be defined: libvirt went away"):
        run_restore(world.repository, point, wanted, "test:///default", no_progress, CancelToken())


class StoppedVm:
    """A VM that QEMU stopped since the repository did not answer."""

    def __init__(self, reason: int) -> None:
        self.found = [libvirt.VIR_DOMAIN_PAUSED, reason]

    def isActive(self) -> bool:  # noqa: N802
        return True

    def state(self) -> list[int]:
        return self.found

    def resume(self) -> None:
        self.found = [libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_UNPAUSED]

    def suspend(self) -> None:
        pass

    def UUIDString(self) -> str:  # noqa: N802
        return "u"

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802
        return "<domain><devices/></domain>"


@pytest.mark.parametrize(
    ("reason", "runs"), [(libvirt.VIR_DOMAIN_PAUSED_IOERROR, True), (libvirt.VIR_DOMAIN_PAUSED_USER, False)]
)
def test_a_guest_that_was_stopped_for_want_of_the_repository_goes_on(reason: int, runs: bool) -> None:
    """Also when its last block job ended before anybody looked at it; one that its user paused stays so."""
    vm = StoppedVm(reason)
    connection = SimpleNamespace(domain=lambda _name: vm, define=lambda *_: None)
    booter = Booter(None, None, connection)  # type: ignore[arg-type]  # asked for nothing
    booter._let_repository_go(Boot("web", "u", "p", "web", "/x", (), "started", 0.0))
    assert (vm.state()[0] == libvirt.VIR_DOMAIN_RUNNING) == runs


@pytest.mark.parametrize(("accept", "failed"), [(("serial",), []), (("agent", "serial"), ["agent"])])
def test_an_agent_that_the_policy_does_not_ask_for_is_not_missed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accept: tuple[str, ...], failed: list[str]
) -> None:
    point = dataclasses.replace(world.add({"vda": b"x" * 4096}), consistency="quiesced")
    order = drill.DrillOrder("test:///default", tmp_path, tmp_path, Drill(accept=accept))  # type: ignore[arg-type]
    one = drill._Drill(world.repository, point, order, None, no_progress, CancelToken())  # type: ignore[arg-type]
    vm = SimpleNamespace(create=lambda: None)
    monkeypatch.setattr(one, "_define", lambda _copy: vm)
    monkeypatch.setattr(Watch, "life", lambda _self: Life("serial", "login:"))
    one._boot(Copy(RestoredFiles(tmp_path, "raw", {}, {}), {}), ExitStack())
    assert [check.name for check in one._checks if not check.ok] == failed


def test_a_screenshot_of_any_size_becomes_evidence() -> None:
    noise = Image.frombytes("RGB", (1400, 1400), random.Random(1).randbytes(1400 * 1400 * 3))
    picture = io.BytesIO()
    noise.save(picture, "PPM")
    taken = drill_domain._as_png(picture.getvalue())
    assert 0 < len(taken) <= SCREENSHOT_MAX
    assert not drill_domain.is_blank(taken)


def test_a_check_of_a_file_system_that_does_not_end_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "e2fsck"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(file_systems, "_LIMIT", 0.1)
    found = file_systems._check(tmp_path / "image", "disk", "ext4", 0)
    assert (found.state, found.detail) == ("not checked", "e2fsck did not end within 0 s")


def test_a_tpm_state_that_a_killed_try_left_stands_in_no_ones_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(define, "TPM_STATE", tmp_path / "swtpm")
    monkeypatch.setattr(define, "_is_system", lambda _connection: True)
    monkeypatch.setattr(define, "_give_to_hypervisor", lambda _files: None)
    files = RestoredFiles(tmp_path, "qcow2", {}, {})
    connection: Any = SimpleNamespace(find=lambda _name: None, define=lambda *_: None)
    for content in (b"of the killed one", b"whole"):
        tpm = archive(tmp_path, {"tpm2/tpm2-00.permall": content})
        define.define_domain(connection, "<domain><devices/></domain>", "web2", files, tpm, identity="u")
    assert (tmp_path / "swtpm" / "u" / "tpm2" / "tpm2-00.permall").read_bytes() == b"whole"


@pytest.mark.parametrize(
    ("met", "longest", "failed", "raised"),
    [
        ([], 0, True, None),
        ([], 60, False, None),
        ([], 60, True, PermanentError),
        ([TransientError("tier is away")], 0, False, None),
        ([TransientError("tier is away")], 0, True, TransientError),
        ([NotFoundError("no pack")], 0, True, PermanentError),
        ([OSError("disk I/O error")], 0, True, PermanentError),
        ([TransientError("away"), IntegrityError("pack is damaged"), IntegrityError("more")], 0, True, "damage"),
        ([IntegrityError("pack is damaged")], 60, True, "damage"),
        ([IntegrityError("pack is damaged")], 0, False, "damage"),
    ],
)
def test_only_damage_speaks_against_a_point_whose_served_disks_could_not_be_read(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    met: list[Exception],
    longest: float,
    failed: bool,
    raised: Any,
) -> None:
    """A tier that is away for long pauses the VM as damage does, or holds it up; the point is as good as before."""
    notes = ReadNotes.new()
    for error in met:
        ReadNotes(notes.handle).note(error)  # as the server's process does
    server: Any = SimpleNamespace(ended=False, read_errors=notes.errors(), longest_read=longest)
    notes.close()
    point = world.add({"vda": b"x" * 4096})
    order = drill.DrillOrder("test:///default", tmp_path, tmp_path)
    one = drill._Drill(world.repository, point, order, None, no_progress, CancelToken())  # type: ignore[arg-type]
    monkeypatch.setattr(one, "_define", lambda _copy: SimpleNamespace(create=lambda: None))
    monkeypatch.setattr(Watch, "life", lambda _self: Life("" if failed else "screen", "the VM was stopped"))
    copy = Copy(RestoredFiles(tmp_path, "qcow2", {}, {}), {}, server=server)
    if isinstance(raised, type):
        with pytest.raises(raised, match="says nothing about the point"):
            one._boot(copy, ExitStack())
        return
    one._boot(copy, ExitStack())
    wrong = {check.name: check.found for check in one._checks if not check.ok}
    expected = {"alive": "the VM was stopped"} if failed else {}
    assert wrong == expected | ({"reads": "pack is damaged"} if raised else {})


def test_a_drill_that_waited_for_our_own_rate_says_which_and_what_to_do() -> None:
    with pytest.raises(PermanentError, match="says nothing about the point") as caught:
        judge_reads({}, 30.0, ("cold", "hot"), failed=True)
    assert "cold and hot wait for `restores:`" in str(caught.value.hint)
    assert "method: restore" in str(caught.value.hint)
    assert judge_reads({}, 30.0, ("hot",), failed=False) == []


def test_how_long_reads_took_is_told_also_while_they_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(serve_notes, "time", SimpleNamespace(monotonic=lambda: now[0]))
    notes = ReadNotes.new()
    server = ReadNotes(notes.handle)
    told = [notes.longest()]
    with server.reading():
        now[0] += 7
        with server.reading():
            told.append(notes.longest())
        now[0] += 3
        told.append(notes.longest())
    now[0] += 50
    told.append(notes.longest())
    server.note(TransientError("tier is away"))
    errors = notes.errors()
    notes.close()
    assert told == [0, 7, 10, 10]
    assert errors == {TransientError: "tier is away"}
