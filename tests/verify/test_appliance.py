"""File systems that libguestfs checks in an image: what is made of its words, and, by hand, on real XFS, Btrfs and LVM.

The real ones start an appliance for each disk, 10 to 25 s: VMCELLAR_EVERY_GUEST=1.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lab.filesystems import file_systems as lab_file_systems
from lab.filesystems import launched, use_working_accelerator
from lab.require import requires
from vmcellar.errors import PermanentError
from vmcellar.repository.evidence import FileSystem
from vmcellar.restore import file_systems
from vmcellar.restore.file_systems import check_file_systems

MIB = 1 << 20
EVERY_GUEST = bool(os.environ.get("VMCELLAR_EVERY_GUEST"))
EXT = FileSystem("partition 1", "ext4", "clean")
MEMBER = FileSystem("partition 2", "LVM2_member", "not checked", "no checker for it here")
XFS = FileSystem("partition 2", "xfs", "not checked", "no checker for it here")


def row(place: str, kind: str, state: str, detail: str = "") -> dict[str, str]:
    return {"place": place, "kind": kind, "state": state, "detail": detail}


@pytest.mark.parametrize(
    ("found", "rows", "becomes"),
    [
        (
            (EXT, MEMBER),
            [
                row("partition 1", "ext4", "not checked"),
                row("vg0/a", "xfs", "damaged", "words"),
                row("vg0/b", "swap", "not checked"),
            ],
            (EXT, FileSystem("vg0/a", "xfs", "damaged", "words"), FileSystem("vg0/b", "swap", "not checked")),
        ),
        ((EXT, MEMBER), [row("partition 1", "ext4", "not checked")], (EXT, MEMBER)),
        ((EXT, XFS), [row("partition 2", "xfs", "clean")], (EXT, FileSystem("partition 2", "xfs", "clean"))),
    ],
)
def test_what_the_appliance_says_takes_the_place_of_what_was_left_to_it(
    monkeypatch: pytest.MonkeyPatch, found: tuple[FileSystem, ...], rows: list[dict[str, str]], becomes: Any
) -> None:
    monkeypatch.setattr(file_systems, "_found", lambda _image: found)
    monkeypatch.setattr(file_systems, "check_installed", lambda: None)
    monkeypatch.setattr(file_systems, "_run", lambda *_: subprocess.CompletedProcess([], 0, json.dumps(rows), ""))
    assert check_file_systems(Path("image")) == becomes


def test_an_appliance_that_cannot_say_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_systems, "_found", lambda _image: (EXT, XFS))
    monkeypatch.setattr(file_systems, "check_installed", lambda: None)
    monkeypatch.setattr(file_systems, "_run", lambda *_: subprocess.CompletedProcess([], 1, "", "no kernel\n"))
    first, second = check_file_systems(Path("image"))
    assert first == EXT
    assert (second.state, second.detail) == ("not checked", "libguestfs: no kernel")

    def missing() -> None:
        raise PermanentError("libguestfs is not installed")

    monkeypatch.setattr(file_systems, "check_installed", missing)
    assert check_file_systems(Path("image")) == (EXT, XFS)


@pytest.fixture
def appliance(monkeypatch: pytest.MonkeyPatch) -> None:
    if not EVERY_GUEST:
        pytest.skip("starts appliances: VMCELLAR_EVERY_GUEST=1")
    requires("root")
    requires("libguestfs")
    monkeypatch.setenv("LIBGUESTFS_BACKEND_SETTINGS", "")
    use_working_accelerator()


def copy_of(target: str, folder: Path) -> Path:
    image = folder / f"{target}.raw"
    subprocess.run(["cp", "--sparse=always", lab_file_systems().images[target], image], check=True)
    return image


def states(image: Path) -> dict[str, tuple[str, str]]:
    return {each.place: (each.type, each.state) for each in check_file_systems(image)}


@pytest.mark.usefixtures("appliance")
@pytest.mark.parametrize(("target", "device"), [("vdb", "vg0/data"), ("vdb", "vg0/more"), ("vdc", "sda")])
def test_a_guest_that_was_caught_while_it_wrote_is_no_damage(tmp_path: Path, target: str, device: str) -> None:
    running, image = copy_of(target, tmp_path), tmp_path / "caught.raw"
    guestfs = launched([running])
    try:
        guestfs.mount(f"/dev/{device}", "/")
        for number in range(300):
            guestfs.write(f"/file{number}", b"x" * 5000)
        guestfs.rm("/file7")
        guestfs.sync()  # in the journal, which is not written back before it is unmounted
        subprocess.run(["cp", "--sparse=always", running, image], check=True)
    finally:
        guestfs.close()
    assert {state for _, state in states(image).values()} == {"clean"}


@pytest.mark.usefixtures("appliance")
def test_btrfs_of_two_disks_is_not_taken_for_damage(tmp_path: Path) -> None:
    disks = [tmp_path / "a.raw", tmp_path / "b.raw"]
    for disk in disks:
        with disk.open("wb") as file:
            file.truncate(256 * MIB)
    guestfs = launched(disks)
    try:
        guestfs.mkfs_btrfs(["/dev/sda", "/dev/sdb"])
        guestfs.shutdown()
    finally:
        guestfs.close()
    (found,) = check_file_systems(disks[0])
    assert (found.type, found.state, found.detail) == ("btrfs", "not checked", "it lies on 2 devices")


@pytest.mark.usefixtures("appliance")
def test_ext4_on_lvm_with_a_damaged_directory(tmp_path: Path) -> None:
    image = copy_of("vdb", tmp_path)
    data = image.read_bytes()
    start = data.rindex(b"lost+found") & ~4095
    with image.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * 4096)  # the root directory
    found = states(image)
    assert (found["vg0/data"], found["vg0/more"]) == (("xfs", "clean"), ("ext4", "damaged"))


@pytest.mark.usefixtures("appliance")
def test_xfs_on_lvm(tmp_path: Path) -> None:
    image = copy_of("vdb", tmp_path)
    assert states(image) == {"vg0/data": ("xfs", "clean"), "vg0/more": ("ext4", "clean")}
    with image.open("r+b") as file:
        file.seek(file.read(64 * MIB).index(b"XFSB") + 512)
        file.write(bytes(512))  # where the first allocation group says what is free
    assert states(image)["vg0/data"] == ("xfs", "damaged")


@pytest.mark.usefixtures("appliance")
def test_btrfs(tmp_path: Path) -> None:
    image = copy_of("vdc", tmp_path)
    assert states(image) == {"disk": ("btrfs", "clean")}
    data = bytearray(image.read_bytes())
    fsid = bytes(data[64 * 1024 + 32 : 64 * 1024 + 48])
    for place in range(MIB, len(data), 4096):  # every node of the tree of files, both copies
        if data[place + 32 : place + 48] == fsid and int.from_bytes(data[place + 88 : place + 96], "little") == 5:
            data[place + 200] ^= 0xFF
    image.write_bytes(data)
    assert states(image) == {"disk": ("btrfs", "damaged")}
