"""Where a path lies: certain only when every mount around it is one that was found."""

from __future__ import annotations

import pytest

from vmcellar.guestfiles import mounts
from vmcellar.guestfiles.mounts import Told, doubt, fstab, holder, partitions, units

LOG = b"/var/log"
ROOT = b"UUID=1 / ext4 defaults 0 1\n"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        ROOT + b"# UUID=2 /var ext4 defaults 0 2\nUUID=3 none swap sw 0 0\n/swapfile swap swap sw 0 0\n",
        ROOT + b"UUID=C3 /var\\057log ext4 defaults 0 2\nUUID=3 /home ext4 defaults 0 2\n",
        b"/dev/vda1 / ext4\n/dev/disk/by-uuid/B2 /var/ xfs noatime\nproc /proc proc defaults 0 0\n",
        ROOT + b"UUID=2 /var/logs ext4\n",
        b"/dev/mapper/vg0-root / ext4\n/dev/mapper/vg0-var /var ext4\n/dev/mapper/my--vg-l--v /var/log xfs\n",
        ROOT + b"/dev/vg0/var /var ext4 defaults 0 2\n",
    ],
)
def test_mounts_of_devices_that_were_found_and_mounts_elsewhere_leave_no_doubt(text: bytes) -> None:
    found = {b"/var": {"b2", "vg0/var"}, b"/var/log": {"c3", "my-vg/l-v"}}
    assert doubt(LOG, fstab(text), found) == ""


@pytest.mark.parametrize(
    "line",
    [
        b"UUID=2 /var ext4 defaults 0 2",  # not found
        b"tmpfs /var/log tmpfs size=1g 0 0",
        b"/srv/logs /var/log none bind 0 0",
        b"UUID=c3 /var/log ext4 rw,bind 0 0",
        b"/dev/sdb1 /var/log ext4 defaults 0 0",  # perhaps another disk here
        b"LABEL=logs /var/log ext4 defaults 0 0",
        b"/dev/mapper/vg0-log /var/log ext4 defaults 0 0",  # another volume
        b"/dev/mapper/my-vg-l-v /var/log ext4 defaults 0 0",  # not a name that LVM gives
        b"/dev/mapper/luks /var/log ext4 defaults 0 0",
        b"/dev/md/log /var/log ext4 defaults 0 0",
        b"/dev/disk/by-label /var/log ext4 defaults 0 0",
        b"UUID=77 /var/log ext4 defaults 0 0",  # found there is another one
        b"UUID=9 /var/log/audit ext4 defaults 0 2",  # below it, not found
        b"host:/logs /var/log nfs defaults 0 0",
        b"overlay /var overlay lowerdir=/a 0 0",
        b"tmpfs / tmpfs defaults 0 0",
        b"what",
    ],
)
def test_any_other_mount_around_it_is_a_doubt(line: bytes) -> None:
    assert doubt(LOG, fstab(ROOT + line + b"\n"), {})
    if line not in (b"UUID=2 /var ext4 defaults 0 2", b"UUID=9 /var/log/audit ext4 defaults 0 2"):
        every = {b"/": {"1"}, b"/var": {"b2", "vg0/var"}, b"/var/log": {"c3", "my-vg/l-v"}}
        assert doubt(LOG, fstab(ROOT + line + b"\n"), every), "it is not certain, whatever was found"


def test_a_mount_that_is_named_twice_hides_the_first() -> None:
    text = ROOT + b"UUID=2 /var ext4\nUUID=2 /var ext4\n"
    assert doubt(LOG, fstab(text), {b"/var": {"2"}}) == "/var is mounted by its fstab twice"


@pytest.mark.parametrize("name", [b"var.mount", b"var-log.automount", b"var-log-audit.mount", b"var-l\\x6fg.mount"])
def test_a_unit_is_a_doubt_even_where_fstab_names_a_device(name: bytes) -> None:
    names = [b"-.mount", b"sshd.service", b"proc-sys-fs-binfmt_misc.automount", name]
    assert "unit" in doubt(LOG, [*fstab(ROOT + b"UUID=2 /var ext4\n"), *units(names)], {b"/var": {"2"}})
    assert doubt(LOG, units(names[:3]), {}) == ""


def test_a_partition_that_systemd_mounts_by_its_type_is_a_doubt_unless_fstab_says_where() -> None:
    told = partitions(["0FC63DAF-8483-4772-8E79-3D69D8477DE4", "4d21b016-b534-45c2-a9fb-5c16e091fd2d"])
    assert told == [Told(b"/var", "the type of a partition")]
    assert doubt(LOG, told, {})
    assert doubt(b"/home", told, {}) == ""
    assert doubt(LOG, [*told, *fstab(b"UUID=2 /var ext4\n")], {b"/var": {"2"}}) == ""


def test_a_path_is_held_by_the_deepest_mount_above_it() -> None:
    assert holder(LOG, [b"/", b"/var", b"/var/lo", b"/var/log/audit"]) == b"/var"
    assert holder(b"/swapfile", []) == b"/"
    assert mounts.within(b"/var/log", b"/")
