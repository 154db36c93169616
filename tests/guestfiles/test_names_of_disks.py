"""Subvolumes are named after their own disk, also where libguestfs tells the kernel's name of it.

FakeAnswers stands for libguestfs 1.48 in an appliance whose kernel found the second disk before the first.
"""

from __future__ import annotations

from itertools import chain

import pytest

from lab.require import requires
from vmcellar.guestfiles.library import Guestfs, GuestfsError

TOLD = {
    b"/dev/sda": b"ext4",
    b"/dev/sdb2": b"btrfs",
    b"btrfsvol:/dev/sda2/@": b"btrfs",
    b"btrfsvol:/dev/sda2/@home": b"btrfs",
}
RIGHT = {
    b"/dev/sda": b"ext4",
    b"/dev/sdb2": b"btrfs",
    b"btrfsvol:/dev/sdb2/@": b"btrfs",
    b"btrfsvol:/dev/sdb2/@home": b"btrfs",
}


class FakeAnswers(Guestfs):
    """Answers without an appliance; `more` are further file systems, with the subvolumes of each."""

    def __init__(self, more: dict[bytes, list[bytes]] | None = None) -> None:
        super().__init__()
        self.volumes = {b"/dev/sdb2": [b"@", b"@home"], **(more or {})}

    def subvolumes(self, device: bytes) -> list[bytes]:
        return self.volumes[device]

    def _strings(self, name: str, *arguments: object) -> list[bytes]:
        if name == "list_filesystems":
            return list(chain.from_iterable((TOLD | dict.fromkeys(self.volumes, b"btrfs")).items()))
        if name == "inspect_os":
            return [b"btrfsvol:/dev/sda2/@"]
        assert (name, *arguments) == ("inspect_get_mountpoints", b"btrfsvol:/dev/sdb2/@")
        return [b"/", b"btrfsvol:/dev/sda2/@", b"/home", b"btrfsvol:/dev/sda2/@home", b"/boot", b"/dev/sda"]


@pytest.fixture(autouse=True)
def _libguestfs() -> None:
    requires("libguestfs")


def test_subvolumes_are_named_after_the_disk_that_holds_them() -> None:
    assert FakeAnswers().list_filesystems() == RIGHT


def test_a_system_on_subvolumes_is_mounted_from_its_own_disk() -> None:
    fake = FakeAnswers()
    (root,) = fake.inspect_os()
    assert root == b"btrfsvol:/dev/sdb2/@"
    assert fake.mount_points(root) == {
        b"/": b"btrfsvol:/dev/sdb2/@",
        b"/home": b"btrfsvol:/dev/sdb2/@home",
        b"/boot": b"/dev/sda",
    }


def test_another_partition_with_such_a_subvolume_is_not_meant() -> None:
    assert FakeAnswers({b"/dev/sdc1": [b"@"]}).inspect_os() == [b"btrfsvol:/dev/sdb2/@"]


def test_two_disks_that_may_be_meant_are_an_error() -> None:
    with pytest.raises(GuestfsError, match="2 disks have the subvolume @"):
        FakeAnswers({b"/dev/sdc2": [b"@"]}).inspect_os()
