"""What the words of `--onto` name, and qcow2 headers that lead elsewhere."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lab.loopdevice import loop_device
from lab.require import requires
from tests.restore.test_onto import MIB, NoVolumes, disk_at
from vmcellar.errors import PermanentError
from vmcellar.restore.destinations import find_destination


def with_data_file(folder: Path) -> Path:
    """A qcow2 image that keeps its data in another file."""
    requires("qemu-img")
    options, disk = f"data_file={folder / 'victim'},data_file_raw=on", folder / "disk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, disk, str(MIB)], check=True)
    return disk


def test_a_header_that_a_guest_may_have_written_is_not_believed(tmp_path: Path) -> None:
    """A raw disk that looks like a qcow2 image whose data is a file of the host."""
    disk = with_data_file(tmp_path)
    with pytest.raises(PermanentError, match="data in another file"):
        disk_at(disk)
    assert find_destination(str(disk), MIB, "raw", NoVolumes()).format == "raw"


def test_an_image_with_a_data_file_is_refused_where_it_is_said_to_be_qcow2(tmp_path: Path) -> None:
    """As a VM's definition says: what is kept of it would be its metadata alone. On a block device, too."""
    requires("loop devices")
    disk = with_data_file(tmp_path)
    with loop_device(disk) as loop:
        for place in (disk, loop):
            with pytest.raises(PermanentError, match="data in another file"):
                find_destination(str(place), MIB, "qcow2", NoVolumes())


def test_a_qcow2_of_version_2_with_a_backing_format_keeps_no_data_elsewhere(tmp_path: Path) -> None:
    """Its header ends where version 3 has that flag: the name of the backing format lies there."""
    requires("qemu-img")
    base, image = tmp_path / "base.qcow2", tmp_path / "image.qcow2"
    create: list[str | Path] = ["qemu-img", "create", "-q", "-f", "qcow2"]
    subprocess.run([*create, base, "1M"], check=True)
    subprocess.run([*create, "-o", "compat=0.10", "-b", base, "-F", "qcow2", image], check=True)
    assert int.from_bytes(image.read_bytes()[72:80]) & 4
    assert find_destination(str(image), MIB, "qcow2", NoVolumes()).format == "qcow2"
