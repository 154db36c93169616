"""What may hold data beside libvirt's disks is named, never passed over in silence (pitfall 13)."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from vmcellar.cli.checks.domains import disk_findings
from vmcellar.sources.libvirt_disks import read_layout

DOMAIN = """
<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><devices>
  <hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host0'/></source><alias name='ua-data'/></hostdev>
  <hostdev mode='subsystem' type='scsi_host'><source protocol='vhost' wwpn='naa.5123456789abcde0'/></hostdev>
  <hostdev mode='subsystem' type='usb'/>
  <memory model='nvdimm'><source><path>/dev/dax0.0</path></source></memory>
  <memory model='dimm'/>
</devices><qemu:commandline>%s</qemu:commandline></domain>
"""
DRIVE = "<qemu:arg value='-drive'/><qemu:arg value='file=/srv/x.raw,if=none,id=x'/>"


def test_each_is_named_and_makes_the_run_red_until_it_is_excluded() -> None:
    layout = read_layout(DOMAIN % DRIVE, {"nvdimm0"})
    assert {(found.target, found.expected) for found in layout.uncovered} == {
        ("ua-data", False),
        ("scsi_host0", False),
        ("nvdimm0", True),
        ("commandline", False),
    }
    assert layout.warnings == ()


@pytest.mark.parametrize(
    ("word", "named"), [("--blockdev", True), ("-hda", True), ("-fw_cfg", False), ("-hdachs", False), ("drive", False)]
)
def test_a_disk_on_the_command_line_is_named_and_nothing_else_there(word: str, named: bool) -> None:
    layout = read_layout(DOMAIN % f"<qemu:arg value='{word}'/>", ())
    assert ("commandline" in {found.target for found in layout.uncovered}) == named


def test_doctor_names_them_as_a_job_excludes_them() -> None:
    found = [finding.detail for finding in disk_findings("web", ET.fromstring(DOMAIN % DRIVE))]  # noqa: S314
    assert [text.partition(" ")[0] for text in found] == ["ua-data", "scsi_host0", "nvdimm0", "commandline"]
