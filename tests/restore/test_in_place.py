"""A VM becomes again what it was: disks, NVRAM, TPM state, definition; and nothing of what it was before is lost."""

from __future__ import annotations

import dataclasses
import os
import random
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import libvirt
import pytest

from lab.disks import MIB, DiskSpec
from tests.restore.test_define import archive
from tests.restore.test_restore import restored_bytes
from tests.restore.world import World, random_disk
from vmcellar.errors import PermanentError
from vmcellar.progress import CancelToken, no_progress
from vmcellar.repository.points import RestorePoint
from vmcellar.restore.in_place import InPlace, InPlaceReport, Wishes
from vmcellar.restore.unfinished import Unfinished, journal
from vmcellar.sources.libvirt_connection import Connection

if TYPE_CHECKING:
    from lab.guest import LabGuest
    from tests.conftest import GuestFactory

pytestmark = pytest.mark.libvirt
SIZE = 4 * MIB
DEFAULT = Wishes()


@pytest.fixture
def vm(make_guest: GuestFactory) -> LabGuest:
    """A VM that is off, with a disk in the point and one that is not."""
    return make_guest((DiskSpec("vda", SIZE), DiskSpec("vdb", SIZE, format="raw"), DiskSpec("sda", SIZE)))


def point_of(world: World, vm: LabGuest, artifacts: dict[str, bytes]) -> RestorePoint:
    rng = random.Random(31)
    disks = {"vda": random_disk(rng, SIZE), "vdb": random_disk(rng, SIZE)}
    return dataclasses.replace(world.add(disks, artifacts), vm=vm.name, vm_uuid=vm.uuid)


def in_place(world: World, point: RestorePoint, uri: str, wishes: Wishes = DEFAULT) -> InPlaceReport:
    job = InPlace(world.repository, point, Connection(uri), world.settings.state, wishes)
    job.prepare(no_backup)
    return job.run(no_progress, CancelToken())


def no_backup() -> str:
    raise PermanentError("no backup")


def is_restored(world: World, point: RestorePoint, vm: LabGuest) -> bool:
    models = world.models[point.id]
    first = restored_bytes(vm.paths["vda"], "qcow2", SIZE) == models["vda"]
    return first and vm.paths["vdb"].read_bytes() == models["vdb"]


def test_a_vm_that_is_off(world: World, vm: LabGuest, libvirt_daemons: str) -> None:
    point = point_of(world, vm, {})
    before = {target: path.read_bytes() for target, path in vm.paths.items()}
    report = in_place(world, point, libvirt_daemons)
    assert is_restored(world, point, vm)
    assert report.left == ("sda",)
    assert vm.paths["sda"].read_bytes() == before["sda"]
    assert [path.read_bytes() for path in report.kept] == [before["vda"], before["vdb"]]
    assert all(".before-" in path.name for path in report.kept)
    assert in_place(world, point, libvirt_daemons, Wishes(keep=False)).kept == ()


def test_a_vm_that_runs_is_refused_or_backed_up_first(world: World, vm: LabGuest, libvirt_daemons: str) -> None:
    point = point_of(world, vm, {})
    before = vm.paths["vda"].read_bytes()
    vm.start(paused=True)
    with pytest.raises(PermanentError, match="is running"):
        in_place(world, point, libvirt_daemons)
    job = InPlace(world.repository, point, Connection(libvirt_daemons), world.settings.state, Wishes(stop=True))
    with pytest.raises(PermanentError, match="no backup"):
        job.prepare(no_backup)
    assert vm.domain.isActive()

    job.prepare(backing_up(world, vm, "vda", "vdb"))
    assert vm.paths["vda"].read_bytes() == before
    report = job.run(no_progress, CancelToken())
    assert (report.safety, report.kept) == (world.last.id if world.last else "", ())
    assert is_restored(world, point, vm)


@pytest.mark.guest
@pytest.mark.skipif(not os.environ.get("VMCELLAR_EVERY_PHASE"), reason="boots a guest: VMCELLAR_EVERY_PHASE=1")
def test_a_guest_that_runs_shuts_down_in_order(world: World, vm: LabGuest, libvirt_daemons: str) -> None:
    point = point_of(world, vm, {})
    vm.start()
    job = InPlace(world.repository, point, Connection(libvirt_daemons), world.settings.state, Wishes(stop=True))
    world.clock = time.time()
    job.prepare(lambda: world.add(dict(world.models[point.id])).id)
    job.run(no_progress, CancelToken())
    assert vm.domain.state() == [libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN], "not by force"
    assert is_restored(world, point, vm)


def backing_up(world: World, vm: LabGuest, *targets: str) -> Callable[[], str]:
    """Takes a point of these disks of a VM that runs, which then goes off; a paused one would not by itself."""

    def back_up() -> str:
        assert vm.domain.isActive()
        vm.domain.destroy()
        world.clock = time.time()
        return world.add({target: world.models[world.last.id][target] for target in targets if world.last}).id

    return back_up


def test_the_safety_point_is_of_now_and_not_of_a_run_that_died_hours_ago(
    world: World, vm: LabGuest, libvirt_daemons: str
) -> None:
    point = point_of(world, vm, {})
    vm.start(paused=True)
    job = InPlace(world.repository, point, Connection(libvirt_daemons), world.settings.state, Wishes(stop=True))
    taken: list[str] = []

    def back_up() -> str:
        taken.append(world.add(dict(world.models[point.id])).id)
        return taken[-1]

    with pytest.raises(PermanentError, match="is older than this command"):
        job.prepare(back_up)
    assert len(taken) == 2
    assert vm.domain.isActive()


def test_it_knows_that_it_will_succeed_before_the_vm_goes_off(world: World, vm: LabGuest, libvirt_daemons: str) -> None:
    point = point_of(world, vm, {})
    vm.start(paused=True)
    vm.domain.blockResize("vda", 2 * SIZE, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    job = InPlace(world.repository, point, Connection(libvirt_daemons), world.settings.state, Wishes(stop=True))
    with pytest.raises(PermanentError, match="it does not fit"):
        job.prepare(no_backup)
    assert vm.domain.isActive()


def redefined(vm: LabGuest, old: str, new: str) -> None:
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
    xml = vm.domain.XMLDesc(flags)
    assert old in xml
    vm.domain.connect().defineXML(xml.replace(old, new))


def test_a_definition_that_names_another_disk_than_the_one_that_runs_is_refused(
    world: World, vm: LabGuest, libvirt_daemons: str, tmp_path: Path
) -> None:
    """The safety point would hold the disk that runs, and the other one be overwritten."""
    point = point_of(world, vm, {})
    other = tmp_path / "prepared.raw"
    other.write_bytes(b"prepared".ljust(SIZE))
    vm.start(paused=True)
    redefined(vm, str(vm.paths["vdb"]), str(other))
    job = InPlace(world.repository, point, Connection(libvirt_daemons), world.settings.state, Wishes(stop=True))
    with pytest.raises(PermanentError, match=r"runs with disk vdb on .* its definition names .*prepared.raw"):
        job.prepare(no_backup)
    assert vm.domain.isActive()


def test_what_does_not_begin_at_the_first_byte_of_its_file_is_refused(
    world: World, vm: LabGuest, libvirt_daemons: str
) -> None:
    point = point_of(world, vm, {})
    before = vm.paths["vdb"].read_bytes()
    source = f"<source file='{vm.paths['vdb']}'"
    slices = "<slices><slice type='storage' offset='1048576' size='1048576'/></slices>"
    redefined(vm, f"{source}/>", f"{source}>{slices}</source>")
    with pytest.raises(PermanentError, match="disk vdb is a slice of a larger file"):
        in_place(world, point, libvirt_daemons)
    assert vm.paths["vdb"].read_bytes() == before


def test_what_the_safety_point_does_not_hold_is_copied(world: World, vm: LabGuest, libvirt_daemons: str) -> None:
    """The policy of today may leave out a disk that the point holds."""
    point = point_of(world, vm, {})
    before = vm.paths["vdb"].read_bytes()
    vm.start(paused=True)
    job = InPlace(world.repository, point, Connection(libvirt_daemons), world.settings.state, Wishes(stop=True))
    job.prepare(backing_up(world, vm, "vda"))
    (kept,) = job.run(no_progress, CancelToken()).kept
    assert kept.read_bytes() == before
    assert is_restored(world, point, vm)


def test_what_was_left_half_may_be_whole_by_now(
    world: World, vm: LabGuest, libvirt_daemons: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody put a good image in the place of one that a kill left half. And copies are durable before all else."""
    point = point_of(world, vm, {})
    disk = str(vm.paths["vda"])
    with journal(world.settings.state, os.path.realpath(disk), disk) as left:
        left.begin(Unfinished(disk, point.id, point.vm, "vda", 0.0))
    before = [vm.paths[target].read_bytes() for target in ("vda", "vdb")]
    durable: list[str] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        durable.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    kept = in_place(world, point, libvirt_daemons).kept
    assert [path.read_bytes() for path in kept] == before
    first, second = (durable.index(str(path)) for path in kept)
    assert max(first, second) < next(i for i, path in enumerate(durable) if "/unfinished/" in path)
    assert str(kept[0].parent) in durable


def test_a_transient_vm_is_refused(world: World, vm: LabGuest, libvirt_daemons: str) -> None:
    point = point_of(world, vm, {})
    xml = vm.domain.XMLDesc()
    vm.start(paused=True)
    vm.domain.undefine()
    try:
        with pytest.raises(PermanentError, match="is transient"):
            in_place(world, point, libvirt_daemons, Wishes(stop=True))
        assert vm.domain.isActive()
    finally:
        vm.connection.defineXML(xml)


def test_another_vm_of_the_same_name_is_refused(world: World, vm: LabGuest, libvirt_daemons: str) -> None:
    point = dataclasses.replace(point_of(world, vm, {}), vm_uuid=str(uuid.uuid4()))
    with pytest.raises(PermanentError, match="is another one"):
        in_place(world, point, libvirt_daemons)


@pytest.mark.parametrize("newer", [False, True])
def test_nvram_tpm_state_and_definition_come_back(
    world: World, vm: LabGuest, vm_tmp: Path, libvirt_daemons: str, monkeypatch: pytest.MonkeyPatch, newer: bool
) -> None:
    monkeypatch.setattr("vmcellar.restore.in_place.TPM_STATE", vm_tmp / "swtpm")
    nvram = vm_tmp / "vars.fd"
    nvram.write_bytes(b"new" * 100)
    root = ET.fromstring(vm.domain.XMLDesc())  # noqa: S314
    os_element = root.find("os")
    assert os_element is not None
    ET.SubElement(os_element, "loader", readonly="yes", type="pflash").text = "/usr/share/OVMF/OVMF_CODE_4M.fd"
    element = ET.SubElement(os_element, "nvram")
    if newer:
        element.set("type", "file")
        ET.SubElement(element, "source", file=str(nvram))
    else:
        element.text = str(nvram)
    vm.connection.defineXML(ET.tostring(root, encoding="unicode"))
    old = vm.domain.XMLDesc().replace("<vcpu placement='static'>1<", "<vcpu placement='static'>2<")
    tpm = archive(vm_tmp, {"tpm2/tpm2-00.permall": b"old state"}).read_bytes()
    (vm_tmp / "swtpm" / vm.uuid / "tpm2").mkdir(parents=True)
    (vm_tmp / "swtpm" / vm.uuid / "tpm2" / "tpm2-00.permall").write_bytes(b"new state")
    point = point_of(world, vm, {"domain.xml": old.encode(), "nvram": b"old" * 100, "tpm.tar": tpm})
    report = in_place(world, point, libvirt_daemons, Wishes(keep=False, definition=True))
    assert report.brought_back == ("NVRAM", "TPM state", "definition")
    assert nvram.read_bytes() == b"old" * 100
    assert (vm_tmp / "swtpm" / vm.uuid / "tpm2" / "tpm2-00.permall").read_bytes() == b"old state"
    assert [path.name.split(".before-")[0] for path in report.kept] == ["vars.fd", vm.uuid]
    assert report.kept[0].read_bytes() == b"new" * 100
    assert "<vcpu placement='static'>2<" in vm.domain.XMLDesc()


def test_a_definition_with_other_disks_is_refused(world: World, vm: LabGuest, libvirt_daemons: str) -> None:
    old = vm.domain.XMLDesc().replace(str(vm.paths["vda"]), "/elsewhere/vda.qcow2")
    point = point_of(world, vm, {"domain.xml": old.encode()})
    with pytest.raises(PermanentError, match="lie elsewhere"):
        in_place(world, point, libvirt_daemons, Wishes(definition=True))
