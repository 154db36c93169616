"""Capturing real domains: what is held, what changed, and every way a change tracker can mislead."""

from __future__ import annotations

import gc
import re

import libvirt
import pytest

from tests.sources.conftest import REPOSITORY, History, read, reasons
from tests.sources.paused_vm import MIB, PausedVm, run
from vmcellar.errors import TransientError
from vmcellar.sources import libvirt_checkpoints
from vmcellar.sources.base import Extent

pytestmark = pytest.mark.libvirt

KIB = 1 << 10


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


def test_another_state_directorys_job_is_a_leftover_only_once_its_process_is_dead(vm: PausedVm) -> None:
    """Two state directories on one host, with one scratch folder and one repository."""
    vm.add_qcow2()
    vm.start()
    here, there = History(vm, instance="aaaaaaaa"), History(vm, instance="bbbbbbbb")
    capture = there.source.begin(there.request())
    assert here.reconcile() == []
    with pytest.raises(TransientError, match="another backup job runs"):
        here.source.begin(here.request())
    assert capture.alive()
    record = capture.result
    del capture
    gc.collect()  # as the end of its process, this drops its hold
    found = there.source.reattach(record)
    assert found is not None, "its own state directory goes on with it"
    assert here.reconcile() == []
    del found
    gc.collect()
    assert here.reconcile() == ["job-aborted", "scratch-removed", "checkpoint-removed"]
    here.backup()


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
