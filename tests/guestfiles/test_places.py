"""Where the appliance says that files of a guest lie, against debugfs; one appliance for all, 15 s without KVM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from lab.disks import MIB
from lab.filesystems import SPREAD, file_systems, spread, use_working_accelerator
from lab.ossystem import START, SystemDisk
from lab.require import requires
from lab.shellcommand import call
from tests.proof.leaving import BLOCK, JOURNAL, OLD, SIZE, SYSLOG, blocks_of, fill, noise
from vmcellar.backup.ranges import total
from vmcellar.guestfiles.places import Answer, Question

UUID = "6b0c3c5e-3f0d-4c43-9a51-0d8a4a1f0c11"


def test_only_files_whose_places_are_certain_are_told(
    vm_tmp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requires("root")
    requires("libguestfs")
    requires("nbdkit-python")
    monkeypatch.setenv("LIBGUESTFS_BACKEND_SETTINGS", "")
    tree = fill(tmp_path / "tree")
    more = f"/dev/sdz1 /data ext4 defaults 0 2\n/srv/data /srv/bound none bind 0 0\nUUID={UUID} /var/log/more ext4\n"
    more += "/dev/mapper/vg0-data /volume xfs defaults 0 2\n/dev/vg0/more /lost ext4 defaults 0 2\n"
    with (tree / "etc/fstab").open("a") as file:
        file.write(more)
    for name in ("data", "etc/systemd/system", "cache", "home", "var/log/more", "volume", "lost"):
        (tree / name).mkdir(parents=True)
        (tree / name / "file").write_bytes(noise(40, 300_000))
    (tree / "etc/systemd/system/cache.mount").write_text("[Mount]\nWhere=/cache\n")
    (tree / "link").symlink_to("/home")
    (tree / "swap file").write_bytes(noise(41))
    (tree / "var/log/with $(touch x) ' and\nnewline").write_bytes(noise(42, 300_000))
    system = SystemDisk(vm_tmp, SIZE, tree)
    blocks = journalled(system, tmp_path / "blocks", f"link {OLD} /home/old", f"unlink {OLD}")
    assert blocks_of(system.model, (OLD,)), "what the disk itself says: only the journal knows of the rename"
    exports = exported(system, tmp_path)
    paths = ("/var/log", "/swap file", "/data", "/srv", "/cache", "/link", "/nothing", f"/volume{SPREAD}", "/lost")
    told = ask(exports, vm_tmp, Question(str(vm_tmp / "nbd.sock"), dict.fromkeys(("vda", "vdb", "vdc"), 512), paths))

    assert len(blocks) > 1
    fine = (SYSLOG, JOURNAL, "/swap file")
    found = {(offset - START) // BLOCK + at for offset, length in told.extents["vda"] for at in range(length // BLOCK)}
    assert blocks_of(system.model, fine) < found, "what is certain"
    assert not found & blocks_of(system.model, ("/var/log/shared", "/var/log/small")), "a hard link; a small file"
    others = ("/var/log/more/file", "/data/file", "/srv/data", "/cache/file", "/home/file", "/etc/fstab", OLD)
    assert not found & blocks_of(system.model, others), "what is not, and what a mount hides"
    assert told.files == len(fine) + 2 + len(spread()) - 1
    assert total(told.extents["vdb"]) == 3 * MIB + BLOCK, "a disk of its own, mounted below the path"
    content = (exports / "vdb").read_bytes()
    assert b"".join(content[at : at + length] for at, length in told.extents["vdb"]).startswith(noise(44))
    assert_spread((exports / "vdc").read_bytes(), told.extents["vdc"])
    why = dict(each.split(": ", 1) for each in told.kept)
    assert why.keys() - {"/data cannot be mounted"} == {
        "/data",
        "/srv",
        "/cache",
        "/link",
        "/nothing",
        f"/volume{SPREAD}",
    }
    assert "by its fstab" in why["/data"]
    assert "/srv/bound is mounted by its fstab" in why["/srv"]
    assert "the unit cache.mount" in why["/cache"]
    assert "symbolic link" in why["/link"]
    assert "2 files, or more" in why[f"/volume{SPREAD}"], "two that share their blocks"


def assert_spread(image: bytes, extents: tuple[tuple[int, int], ...]) -> None:
    """On the volume in two parts: all blocks of the files but for those that share theirs, and no others."""
    holders = {content[at : at + BLOCK]: name for name, content in spread().items() for at in range(0, MIB, BLOCK)}
    blocks = [at for offset, length in extents for at in range(offset, offset + length, BLOCK)]
    tails = [at for at in blocks if image[at : at + BLOCK] not in holders]
    assert len(tails) <= sum(content_blocks(name) - MIB // BLOCK for name in spread())
    held = {holders[image[at : at + BLOCK]] for at in blocks if at not in tails}
    assert held == spread().keys() - {"0"}
    assert len(blocks) == len(set(blocks)) == sum(content_blocks(name) for name in held)
    between = {at >= 200 * MIB for at in blocks}
    assert between == {True, False}, "both parts hold some"


def content_blocks(name: str) -> int:
    """How many blocks one of the files has."""
    return -(-len(spread()[name]) // BLOCK)


def journalled(system: SystemDisk, data: Path, *commands: str) -> list[int]:
    """Have the model's journal alone hold what these commands of debugfs change; the blocks that are in it."""
    before = system.model.read_bytes()
    system.debugfs(*commands)
    after = system.model.read_bytes()
    changed = [at for at in range(START, len(after), BLOCK) if after[at : at + BLOCK] != before[at : at + BLOCK]]
    data.write_bytes(b"".join(after[at : at + BLOCK] for at in changed))
    system.model.write_bytes(before)
    blocks = [(at - START) // BLOCK for at in changed]
    system.debugfs("journal_open", f"journal_write -b {','.join(map(str, blocks))} {data}", "journal_close")
    return blocks


def exported(system: SystemDisk, folder: Path) -> Path:
    """A folder with the guest's disks: the system's, one of an ext4 with one file, one of volumes."""
    exports, tree = folder / "exports", folder / "second"
    exports.mkdir()
    tree.mkdir()
    (tree / "app.log").write_bytes(noise(44))
    call(["/sbin/mke2fs", "-q", "-t", "ext4", "-b", str(BLOCK), "-U", UUID, "-d", tree, exports / "vdb", "16M"])
    call(["cp", "--sparse=always", system.model, exports / "vda"])
    call(["cp", "--sparse=always", file_systems().images["vdb"], exports / "vdc"])
    return exports


def ask(exports: Path, folder: Path, question: Question) -> Answer:
    """Have the program ask these exports."""
    use_working_accelerator()
    given = folder / "question"
    given.write_bytes(TypeAdapter(Question).dump_json(question))
    run = f"{sys.executable} -m vmcellar.guestfiles.places < {given}"
    line = ["nbdkit", "--unix", question.socket, "--readonly", "file", f"dir={exports}", "--run", run]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment)
    assert not done.returncode, done.stderr
    return TypeAdapter(Answer).validate_json(done.stdout)
