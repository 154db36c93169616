"""Captures of disks that changed shape, of disks without bitmaps, and of what lies beside the disks."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import libvirt
import pytest

from lab.image import guest_image
from lab.require import requires
from tests.sources.conftest import History, read, reasons
from tests.sources.nbd_server import image, serve
from tests.sources.paused_vm import MIB, PausedVm, run
from vmcellar.errors import PermanentError, TransientError
from vmcellar.sources import libvirt_checkpoints
from vmcellar.sources.base import CaptureResult, Extent

pytestmark = pytest.mark.libvirt

KIB = 1 << 10


def test_full_scratch_space_is_refused_before_the_guest_suffers(vm: PausedVm, history: History) -> None:
    """Pitfall 11."""
    vm.add_qcow2(size=64 * MIB)
    vm.scratch.mkdir(mode=0o711)
    run("mount", "-t", "tmpfs", "-o", "size=4M,mode=711", "tmpfs", str(vm.scratch))
    try:
        vm.start()
        vm.io("vda", "write -P 9 0 2M")
        history.source = type(history.source)("qemu:///system", vm.scratch, reserve=32 * MIB)
        with pytest.raises(PermanentError, match="32 MiB are wanted"):
            history.source.begin(history.request())
        assert list(vm.scratch.iterdir()) == []
        history.source = type(history.source)("qemu:///system", vm.scratch, reserve=MIB)
        capture = history.source.begin(history.request())
        vm.io("vda", "write -P 1 0 1M")
        before = capture.scratch_pressure().fraction
        vm.io("vda", "write -P 1 1M 1M")
        assert before < capture.scratch_pressure().fraction < 1
        capture.end()
    finally:
        run("umount", str(vm.scratch))


def test_grown_part_is_dirty(vm: PausedVm, history: History) -> None:
    """Pitfall 12: the bitmap calls the grown part clean."""
    vm.add_qcow2(size=16 * MIB + 512 * 3)
    vm.start()
    history.backup()
    vm.domain.blockResize("vda", 24 * MIB, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    capture = history.source.begin(history.request())
    assert reasons(capture) == {"vda": ""}
    assert capture.dirty("vda") == [Extent(16 * MIB, 8 * MIB)]
    capture.end()


def test_hot_added_disk_is_full_and_the_rest_incremental(vm: PausedVm, history: History) -> None:
    """Pitfall 12: one disk more does not refuse the whole job."""
    vm.add_qcow2()
    vm.start()
    history.backup()
    vm.add_qcow2("vdb")
    vm.domain.attachDeviceFlags(vm.disks["vdb"], libvirt.VIR_DOMAIN_AFFECT_LIVE)
    capture = history.backup()
    assert reasons(capture) == {"vda": "", "vdb": "new disk: the parent does not hold it"}
    assert b"vdb" in capture.artifacts["domain.xml"], "the definition shows the disks of the instant"
    assert reasons(history.backup()) == {"vda": "", "vdb": ""}


def test_replaced_image_is_full(vm: PausedVm, history: History) -> None:
    """Pitfall 12."""
    vm.add_qcow2()
    vm.add_qcow2("vdb")
    vm.start()
    history.backup()
    vm.stop()
    other = vm.folder / "other.img"
    vm.make_qcow2(other, 16 * MIB)
    other.replace(vm.image("vdb"))
    vm.start()
    assert reasons(history.backup()) == {"vda": "", "vdb": "image replaced since the parent"}


def test_shrunk_disk_is_full(vm: PausedVm, history: History) -> None:
    vm.add_qcow2()
    vm.start()
    history.backup()
    history.previous = tuple(type(d)(d.target, d.identity, d.size + MIB) for d in history.previous)
    assert reasons(history.backup()) == {"vda": "disk shrank"}


def test_revert_to_an_older_snapshot_is_full(vm: PausedVm, history: History) -> None:
    """Pitfall 16: QEMU refuses a revert while bitmaps exist; whoever removes them to revert gets a full read."""
    vm.add_qcow2()
    vm.start()
    vm.stop()
    run("qemu-img", "snapshot", "-c", "before", str(vm.image("vda")))
    vm.start()
    vm.io("vda", "write -P 1 0 64k")
    parent = history.backup().result.checkpoint
    vm.stop()
    with pytest.raises(subprocess.CalledProcessError):
        run("qemu-img", "snapshot", "-a", "before", str(vm.image("vda")))
    run("qemu-img", "bitmap", "--remove", str(vm.image("vda")), parent)
    run("qemu-img", "snapshot", "-a", "before", str(vm.image("vda")))
    vm.start()
    assert reasons(history.backup()) == {"vda": libvirt_checkpoints.BROKEN}


def test_disks_without_bitmaps_are_full_each_time_and_others_are_named(vm: PausedVm, history: History) -> None:
    """Pitfall 13: raw, old, network, passthrough, shareable, read-only, removable, excluded: none is silent."""
    vm.add_qcow2()
    vm.add_qcow2("vdb", 4 * MIB, "-o", "compat=0.10")
    vm.add_raw("vdc")
    for target in ("vde", "vdf", "vdg"):
        vm.add_raw(target)
    vm.disks["vde"] = vm.disk_xml("vde", "raw", "<shareable/>")
    vm.disks["vdf"] = vm.disk_xml("vdf", "raw", "<readonly/>")
    vm.disks["sda"] = "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>"
    vm.image("net").write_bytes(b"\7" * MIB)
    socket = vm.folder / "net.sock"
    vm.disks["vdd"] = (
        "<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd'>"
        f"<host transport='unix' socket='{socket}'/></source><target dev='vdd' bus='virtio'/></disk>"
    )
    with serve(socket, image(vm.image("net")), writable=True):
        socket.chmod(0o777)
        vm.start()
        capture = history.source.begin(history.request(excluded=frozenset({"vdg", "vdz"})))
        assert read(capture, "vdd", 0, MIB) == b"\7" * MIB
        capture.end()
    assert {d.target: d.reason for d in capture.result.disks if not d.tracked} == {
        "vdb": "qcow2 version 2: no bitmap (`qemu-img amend -o compat=1.1 IMAGE` while the VM is off)",
        "vdc": "raw disk: no bitmap",
        "vdd": "raw disk: no bitmap",
    }
    assert {(d.target, d.expected) for d in capture.result.uncovered} == {
        ("vde", False),
        ("vdf", True),
        ("vdg", True),
        ("sda", True),
    }
    assert capture.result.warnings == ("vdz: excluded, but the VM has no such disk",)


def test_raw_disk_is_read_in_full_beside_an_incremental_one(vm: PausedVm, history: History) -> None:
    vm.add_qcow2()
    vm.add_raw("vdb")
    vm.start()
    vm.io("vdb", "write -P 9 0 1M")
    history.backup()
    capture = history.source.begin(history.request())
    assert reasons(capture) == {"vda": "", "vdb": "raw disk: no bitmap"}
    assert capture.dirty("vdb") is None
    assert read(capture, "vdb", 0, MIB) == b"\x09" * MIB
    capture.end()


def test_vm_with_raw_disks_only_has_no_checkpoint(vm: PausedVm, history: History) -> None:
    vm.add_raw("vda")
    vm.start()
    capture = history.source.begin(history.request())
    assert (capture.result.checkpoint, capture.result.checkpoint_xml) == ("", "")
    capture.end()


def test_nothing_to_back_up_is_an_error(vm: PausedVm, history: History) -> None:
    vm.add_raw("vda")
    vm.start()
    with pytest.raises(PermanentError, match="nothing to back up: vda: excluded by the policy"):
        history.source.begin(history.request(excluded=frozenset({"vda"})))


def test_asked_for_a_full(vm: PausedVm, history: History) -> None:
    vm.add_qcow2()
    vm.start()
    history.backup()
    assert reasons(history.backup(force_full="asked for")) == {"vda": "asked for"}


def test_no_agent_is_crash_consistent_and_says_why(vm: PausedVm, history: History) -> None:
    vm.add_qcow2()
    vm.start()
    result = history.backup().result
    assert (result.consistency, result.freeze_seconds) == ("crash", 0.0)
    assert result.consistency_reason == "the VM has no guest agent channel"


def test_result_survives_json(vm: PausedVm, history: History) -> None:
    from vmcellar.backup.model import from_json, to_json  # noqa: PLC0415  (the edge that the record crosses)

    vm.add_qcow2()
    vm.start()
    result = history.backup().result
    assert from_json(CaptureResult, to_json(result)) == result


def test_killed_qemu_ends_the_capture(vm: PausedVm, history: History) -> None:
    vm.add_qcow2()
    vm.start()
    capture = history.source.begin(history.request())
    vm.kill()
    assert not capture.alive()
    with pytest.raises(TransientError):
        capture.open_reader("vda")
    capture.end()
    assert list(vm.scratch.iterdir()) == []


def test_boot_files_are_captured(vm: PausedVm, history: History) -> None:
    """Pitfall 18."""
    boot = guest_image()
    vm.os_extra = f"<kernel>{boot.kernel}</kernel><initrd>{boot.initrd}</initrd>"
    vm.add_qcow2()
    vm.start()
    found = history.backup().artifacts
    assert found["kernel"] == boot.kernel.read_bytes()
    assert found["initrd"] == boot.initrd.read_bytes()
    assert b"<domain" in found["domain.xml"]


def test_nvram_and_tpm_state_are_captured(vm: PausedVm, history: History) -> None:
    """Pitfall 18: an UEFI guest with a TPM does not boot from its disks alone."""
    requires("swtpm")
    vm.add_qcow2()
    vm.extra = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
    xml = vm.xml().replace("machine='pc'", "machine='q35'").replace("<os>", "<os firmware='efi'>")
    features = "<firmware><feature enabled='no' name='secure-boot'/></firmware></os>"
    vm.connection.defineXML(xml.replace("</os>", features).replace("bus='virtio'", "bus='sata'"))
    vm.start()
    found = history.backup().artifacts
    assert found["nvram"] == Path(f"/var/lib/libvirt/qemu/nvram/{vm.name}_VARS.fd").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(found["tpm.tar"])) as tar:
        assert any(name.endswith("tpm2-00.permall") for name in tar.getnames())
    assert history.backup().result.warnings == ()


def test_unreachable_scratch_folder_says_the_fix(vm: PausedVm, history: History) -> None:
    vm.add_qcow2()
    vm.start()
    private = vm.folder / "private"
    private.mkdir(mode=0o700)
    history.source = type(history.source)("qemu:///system", private / "scratch", reserve=MIB)
    with pytest.raises(PermanentError, match="may not enter") as caught:
        history.source.begin(history.request())
    assert f"chmod o+x {private}" in caught.value.hint


def test_too_long_scratch_path_says_the_fix(vm: PausedVm, history: History) -> None:
    vm.add_qcow2()
    vm.start()
    history.source = type(history.source)("qemu:///system", vm.folder / ("x" * 90), reserve=MIB)
    with pytest.raises(PermanentError, match="too long for a socket"):
        history.source.begin(history.request())
