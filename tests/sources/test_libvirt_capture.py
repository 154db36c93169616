"""Capturing real domains: what is held, what changed, and every way a change tracker can mislead."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import libvirt
import pytest

from lab.image import guest_image
from tests.sources.conftest import REPOSITORY, History, reasons
from tests.sources.nbd_server import image, serve
from tests.sources.paused_vm import MIB, PausedVm, run
from vmcellar.errors import PermanentError, TransientError
from vmcellar.memory import BufferPool
from vmcellar.sources import libvirt_checkpoints
from vmcellar.sources.base import Capture, CaptureResult, Extent

pytestmark = pytest.mark.libvirt

KIB = 1 << 10


def read(capture: Capture, target: str, offset: int, length: int) -> bytes:
    found = bytearray()
    with capture.open_reader(target) as reader:
        reader.read([(offset, length)], BufferPool(1 << 20), lambda _o, data: found.extend(data))
    return bytes(found)


def test_a_capture_holds_its_instant_while_the_guest_writes(vm: PausedVm, history: History) -> None:
    vm.add_qcow2()
    vm.start()
    vm.io("vda", "write -P 1 0 1M")
    capture = history.source.begin(history.request())
    vm.io("vda", "write -P 2 0 1M")
    assert read(capture, "vda", 0, MIB) == b"\1" * MIB
    assert capture.allocated("vda") == [Extent(0, MIB, False), Extent(MIB, 15 * MIB, True)]
    assert capture.dirty("vda") is None
    assert reasons(capture) == {"vda": "first backup"}
    assert capture.scratch_pressure().used >= MIB, "the old megabyte lies in the scratch file"
    capture.end()


def test_ending_leaves_nothing_and_may_be_repeated(vm: PausedVm, history: History) -> None:
    vm.add_qcow2()
    vm.start()
    capture = history.source.begin(history.request())
    assert capture.alive()
    capture.end()
    capture.end()
    assert not capture.alive()
    assert list(vm.scratch.iterdir()) == []
    vm.stop()
    capture.end()


def test_incremental_names_writes_zeroes_and_discards(vm: PausedVm, history: History) -> None:
    """Pitfall 1: what was zeroed or discarded since the parent is dirty, and reads as zero now."""
    vm.add_qcow2()
    vm.start()
    vm.io("vda", "write -P 1 0 8M")
    history.backup()
    vm.io("vda", "write -P 2 1M 64k")
    vm.io("vda", "write -z 2M 1M")
    vm.io("vda", "discard 4M 1M")
    capture = history.source.begin(history.request())
    assert capture.dirty("vda") == [Extent(MIB, 64 * KIB), Extent(2 * MIB, MIB), Extent(4 * MIB, MIB)]
    holes = [extent for extent in capture.allocated("vda") if extent.zero]
    assert Extent(2 * MIB, MIB, True) in holes
    capture.end()


def test_orphan_checkpoint_is_never_a_parent(vm: PausedVm, history: History) -> None:
    """Pitfall 2: killed between checkpoint and data, the change still belongs to the next incremental."""
    vm.add_qcow2()
    vm.start()
    history.backup()
    vm.io("vda", "write -P 5 0 64k")
    orphan = history.source.begin(history.request())
    orphan.end()
    capture = history.source.begin(history.request())
    assert capture.result.parent == history.recorded[-1]
    assert capture.dirty("vda") == [Extent(0, 64 * KIB)]
    capture.end()
    history.commit(capture)
    assert history.reconcile() == ["checkpoint-removed"]
    names = libvirt_checkpoints.own(vm.domain, REPOSITORY)
    assert set(names) == set(history.recorded)
    vm.io("vda", "write -P 6 1M 64k")
    after = history.source.begin(history.request())
    assert after.dirty("vda") == [Extent(MIB, 64 * KIB)], "removing an orphan loses no change"
    after.end()


def test_checkpoint_names_are_never_used_again(vm: PausedVm, history: History) -> None:
    """Pitfall 3."""
    vm.add_qcow2()
    vm.start()
    request = history.request()
    names = []
    for _ in range(2):
        capture = history.source.begin(request)
        names.append(capture.result.checkpoint)
        capture.end()
    assert len(set(names)) == 2
    assert all(re.fullmatch(r"vmcellar-01234567-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", name) for name in names)


def test_storage_rollback_is_read_in_full(vm: PausedVm, history: History) -> None:
    """Pitfall 3: an image from before the parent checkpoint has no bitmap for it, whatever libvirt believes."""
    vm.add_qcow2()
    vm.start()
    history.backup()
    vm.stop()
    old = vm.image("vda").read_bytes()
    vm.start()
    history.backup()
    vm.stop()
    with vm.image("vda").open("wb") as file:
        file.write(old)
    vm.start()
    capture = history.backup()
    assert reasons(capture) == {"vda": libvirt_checkpoints.BROKEN}


def test_bitmaps_broken_by_kill_are_read_in_full_once(vm: PausedVm, history: History) -> None:
    """Pitfall 5."""
    vm.add_qcow2()
    vm.add_qcow2("vdb")
    vm.start()
    history.backup()
    vm.kill()
    vm.start()
    capture = history.backup()
    assert reasons(capture) == {"vda": libvirt_checkpoints.BROKEN, "vdb": libvirt_checkpoints.BROKEN}
    assert capture.result.parent is None
    assert reasons(history.backup()) == {"vda": "", "vdb": ""}
    history.backup()
    history.backup()
    assert history.reconcile() == ["checkpoint-removed", "checkpoint-removed"], "the broken one goes by metadata"


def test_bitmap_of_one_disk_broken_is_that_disks_matter(vm: PausedVm, history: History) -> None:
    vm.add_qcow2()
    vm.add_qcow2("vdb")
    vm.start()
    first = history.backup()
    vm.stop()
    run("qemu-img", "bitmap", "--remove", str(vm.image("vdb")), first.result.checkpoint)
    vm.start()
    vm.io("vda", "write -P 1 0 64k")
    capture = history.source.begin(history.request())
    assert reasons(capture) == {"vda": "", "vdb": libvirt_checkpoints.BROKEN}
    assert capture.dirty("vda") == [Extent(0, 64 * KIB)]
    capture.end()


def test_lost_metadata_is_defined_again_in_the_order_of_the_chain(vm: PausedVm, history: History) -> None:
    """Pitfall 7: libvirt forgets the checkpoints of a transient domain; twelve of them, so that 10 sorts before 9."""
    vm.add_qcow2()
    vm.start_transient()
    for _ in range(12):
        history.backup()
    vm.stop()
    vm.start_transient()
    assert vm.domain.listAllCheckpoints() == []
    vm.io("vda", "write -P 1 64k 64k")
    capture = history.source.begin(history.request())
    assert reasons(capture) == {"vda": ""}
    assert capture.dirty("vda") == [Extent(64 * KIB, 64 * KIB)]
    found = libvirt_checkpoints.own(vm.domain, REPOSITORY)
    assert list(found) == [*history.recorded, capture.result.checkpoint]
    capture.end()


def test_part_of_the_chain_gone_is_skipped(vm: PausedVm, history: History) -> None:
    """Older checkpoints that were removed for good do not keep the parent from coming back."""
    vm.add_qcow2()
    vm.start_transient()
    for _ in range(5):
        history.backup()
    history.reconcile()
    vm.stop()
    vm.start_transient()
    capture = history.backup()
    assert reasons(capture) == {"vda": ""}


def test_metadata_lost_beside_another_tools_checkpoints(vm: PausedVm, history: History) -> None:
    vm.add_qcow2()
    vm.start()
    history.backup()
    History(vm, "ffffeeee00000000").backup()
    vm.io("vda", "write -P 1 0 64k")
    vm.domain.checkpointLookupByName(history.recorded[0]).delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
    capture = history.source.begin(history.request())
    assert capture.dirty("vda") == [Extent(0, 64 * KIB)]
    capture.end()


def test_lost_metadata_and_lost_bitmap_is_read_in_full(vm: PausedVm, history: History) -> None:
    vm.add_qcow2()
    vm.start()
    vm.domain.checkpointLookupByName(history.backup().result.checkpoint).delete()
    assert reasons(history.backup()) == {"vda": libvirt_checkpoints.LOST}


def test_external_snapshot_is_a_new_image(vm: PausedVm, history: History) -> None:
    vm.add_qcow2()
    vm.start()
    vm.io("vda", "write -P 1 0 1M")
    history.backup()
    overlay = vm.folder / "overlay.img"
    vm.domain.snapshotCreateXML(
        f"<domainsnapshot><disks><disk name='vda' snapshot='external'><source file='{overlay}'/></disk></disks>"
        "</domainsnapshot>",
        libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY,
    )
    capture = history.source.begin(history.request())
    assert reasons(capture) == {"vda": "image replaced since the parent"}
    assert read(capture, "vda", 0, MIB) == b"\1" * MIB, "the overlay's backing file is part of the disk"
    capture.end()
    history.commit(capture)
    assert reasons(history.backup()) == {"vda": ""}


def test_two_repositories_have_a_lineage_each(vm: PausedVm, history: History) -> None:
    """Pitfall 8."""
    other = History(vm, "ffffeeee00000000")
    vm.add_qcow2()
    vm.start()
    history.backup()
    vm.io("vda", "write -P 1 0 64k")
    other.backup()
    vm.io("vda", "write -P 2 1M 64k")
    mine, theirs = history.source.begin(history.request()), None
    assert mine.dirty("vda") == [Extent(0, 64 * KIB), Extent(MIB, 64 * KIB)]
    mine.end()
    theirs = other.source.begin(other.request())
    assert theirs.dirty("vda") == [Extent(MIB, 64 * KIB)]
    theirs.end()
    assert other.reconcile() == ["checkpoint-removed"]
    assert history.recorded[0] in libvirt_checkpoints.own(vm.domain, REPOSITORY)


def test_a_retry_of_one_run_begins_no_second_job(vm: PausedVm, history: History) -> None:
    """Pitfall 19."""
    vm.add_qcow2()
    vm.start()
    request = history.request()
    first = history.source.begin(request)
    second = history.source.begin(request)
    assert not first.alive()
    assert second.alive()
    second.end()


def test_job_of_a_dead_process_is_found_again(vm: PausedVm, history: History) -> None:
    """Pitfall 9: the next process goes on with the instant, from nothing but the record."""
    vm.add_qcow2()
    vm.start()
    history.backup()
    vm.io("vda", "write -P 3 0 64k")
    record = history.source.begin(history.request()).result
    again = History(vm).source.reattach(record)
    assert again is not None
    assert again.dirty("vda") == [Extent(0, 64 * KIB)]
    again.end()
    assert history.source.reattach(record) is None


def test_reconcile_aborts_dead_runs_and_spares_live_ones(vm: PausedVm, history: History) -> None:
    """Pitfall 9."""
    vm.add_qcow2()
    vm.start()
    capture = history.source.begin(history.request())
    assert history.reconcile(capture.result.run_id) == []
    assert capture.alive()
    assert history.reconcile() == ["job-aborted", "scratch-removed", "checkpoint-removed"]
    assert not capture.alive()
    assert list(vm.scratch.iterdir()) == []
    assert history.reconcile() == []


def test_a_released_run_keeps_its_checkpoint_until_it_is_committed(vm: PausedVm, history: History) -> None:
    vm.add_qcow2()
    vm.start()
    capture = history.source.begin(history.request())
    capture.end()
    assert history.reconcile(capture.result.run_id) == []
    history.commit(capture)
    assert reasons(history.backup()) == {"vda": ""}


def test_another_tools_job_is_named_and_left_alone(vm: PausedVm, history: History) -> None:
    """Pitfall 15: at once and by name, not after libvirt's 30 s."""
    vm.add_qcow2()
    vm.start()
    socket = vm.folder / "their.sock"
    vm.domain.backupBegin(
        f"<domainbackup mode='pull'><server transport='unix' socket='{socket}'/><disks><disk name='vda' type='file'>"
        f"<scratch file='{vm.folder}/their.scratch'/></disk></disks></domainbackup>",
        "<domaincheckpoint><name>theirs</name></domaincheckpoint>",
    )
    with pytest.raises(TransientError, match=re.escape(str(socket))):
        history.source.begin(history.request())
    assert history.reconcile() == []
    assert "their.sock" in vm.domain.backupGetXMLDesc()
    assert [c.getName() for c in vm.domain.listAllCheckpoints()] == ["theirs"]
    assert list(vm.scratch.glob("*")) == []


def test_only_the_newest_three_recorded_checkpoints_stay(vm: PausedVm, history: History) -> None:
    """Pitfall 2: three, so that losing the newest point costs no full read."""
    vm.add_qcow2()
    vm.start()
    for _ in range(5):
        history.backup()
    assert history.reconcile() == ["checkpoint-removed", "checkpoint-removed"]
    assert list(libvirt_checkpoints.own(vm.domain, REPOSITORY)) == history.recorded[2:]
    vm.io("vda", "write -P 1 0 64k")
    history.chain.pop()
    capture = history.source.begin(history.request())
    assert capture.dirty("vda") == [Extent(0, 64 * KIB)], "an older retained checkpoint is right, too"
    capture.end()


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


@pytest.mark.skipif(not Path("/usr/share/OVMF").exists() or not shutil.which("swtpm"), reason="needs ovmf and swtpm")
def test_nvram_and_tpm_state_are_captured(vm: PausedVm, history: History) -> None:
    """Pitfall 18: an UEFI guest with a TPM does not boot from its disks alone."""
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
