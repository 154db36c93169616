"""The new VM shares nothing with the old one that two VMs cannot both have."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from vmcellar.errors import IntegrityError, UsageError
from vmcellar.restore.domain_xml import Networks, RestoredFiles, firmware_files, parse_networks, rewrite_domain
from vmcellar.restore.drill_domain import isolated_xml

OLD_UUID = "11111111-2222-3333-4444-555555555555"
NEW_UUID = "99999999-2222-3333-4444-555555555555"
OLD = f"""
<domain type='kvm' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web</name><uuid>{OLD_UUID}</uuid><genid>{OLD_UUID}</genid>
  <sysinfo type='smbios'><system><entry name='uuid'>{OLD_UUID}</entry></system></sysinfo>
  <os><type>hvm</type><loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/web_VARS.fd</nvram>
    <kernel>/boot/web-vmlinuz</kernel><initrd>/boot/web-initrd</initrd></os>
  <devices>
    <disk type='network' device='disk'><driver name='qemu' type='raw' cache='none'/><auth username='x'/>
      <source protocol='rbd' name='pool/web'/><backingStore/><target dev='vda' bus='virtio'/><serial>S1</serial>
      <alias name='virtio-disk0'/></disk>
    <disk type='block' device='lun' sgio='unfiltered'><driver name='qemu' type='raw'/><source dev='/dev/sdz'/>
      <target dev='sda' bus='scsi'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/srv/old/b.qcow2'/>
      <target dev='vdb' bus='virtio'/><blockio logical_block_size='4096' physical_block_size='4096'/></disk>
    <disk type='file' device='cdrom'><source file='/nowhere/install.iso'/>
      <target dev='hda' bus='ide'/><readonly/></disk>
    <interface type='network'><mac address='52:54:00:aa:bb:cc'/><source network='default' portid='1'/>
      <target dev='vnet3'/><model type='virtio'/></interface>
    <channel type='unix'><source mode='bind' path='/run/web/agent'/>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
    <serial type='file'><source path='/var/log/web-serial.log'/><target port='0'/></serial>
    <graphics type='vnc' port='5901' autoport='no' websocket='5701'/>
    <hostdev mode='subsystem' type='pci'/>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
    <vsock model='virtio'><cid auto='no' address='3'/></vsock>
  </devices>
  <seclabel type='dynamic' model='dac'><label>+1:+1</label></seclabel>
  <qemu:commandline><qemu:arg value='-foo'/></qemu:commandline>
</domain>"""

FILES = RestoredFiles(
    folder=Path("/r"),
    image_format="qcow2",
    images={"vda": Path("/r/vda.qcow2"), "vdb": Path("/r/vdb.qcow2")},
    boot={name: Path("/r") / name for name in ("nvram", "kernel", "initrd")},
)


def rewritten(files: RestoredFiles = FILES) -> tuple[ET.Element, tuple[str, ...]]:
    result = rewrite_domain(OLD, "web2", NEW_UUID, files)
    return ET.fromstring(result.xml), result.dropped  # noqa: S314  (our own output)


def test_nothing_of_the_old_identity_is_left() -> None:
    domain, _ = rewritten()
    text = ET.tostring(domain, encoding="unicode")
    for old in (OLD_UUID, "52:54:00:aa:bb:cc", "vnet3", "/srv/old", "rbd", "/run/web", "5901", "web_VARS", "/boot/web"):
        assert old not in text, old
    assert domain.get("id") is None
    assert domain.findtext("name") == "web2"
    assert domain.findtext("uuid") == NEW_UUID == domain.findtext("sysinfo/system/entry[@name='uuid']")
    assert domain.find("genid") is not None


def test_disks_are_the_restored_images_with_their_settings() -> None:
    domain, dropped = rewritten()
    disks = {disk.find("target").get("dev"): disk for disk in domain.iterfind("devices/disk")}  # type: ignore[union-attr]  # None fails
    assert set(disks) == {"vda", "vdb", "hda"}
    vda = disks["vda"]
    assert vda.get("type") == "file"
    assert vda.find("source").attrib == {"file": "/r/vda.qcow2"}  # type: ignore[union-attr]  # None fails
    assert vda.find("driver").attrib == {"name": "qemu", "type": "qcow2", "cache": "none"}  # type: ignore[union-attr]  # None fails
    assert vda.findtext("serial") == "S1"
    assert disks["vdb"].find("blockio") is not None
    assert disks["hda"].find("source") is None
    assert "disk sda was not restored" in dropped
    assert any("hostdev" in words for words in dropped)


def test_boot_files_are_the_restored_ones() -> None:
    domain, _ = rewritten()
    assert domain.findtext("os/kernel") == "/r/kernel"
    assert domain.findtext("os/initrd") == "/r/initrd"
    nvram = domain.find("os/nvram")
    assert nvram is not None
    assert nvram.text == "/r/nvram"
    assert nvram.attrib == {}, "a template would overwrite the restored variables"
    assert domain.findtext("os/loader") == "/usr/share/OVMF/OVMF_CODE.fd"


def test_variables_that_the_old_definition_left_to_libvirt_are_the_restored_ones() -> None:
    """Without a path libvirt makes a new file from its template at the first start, and the guest's are lost."""
    xml = OLD.replace("<os>", "<os firmware='efi'>")
    start, end = xml.index("<nvram"), xml.index("</nvram>") + len("</nvram>")
    xml = xml[:start] + xml[end:]
    assert "<nvram>/r/nvram</nvram>" in rewrite_domain(xml, "web2", NEW_UUID, FILES).xml
    assert "nvram" not in rewrite_domain(xml.replace(" firmware='efi'", ""), "web2", NEW_UUID, FILES).xml


WRITTEN = "<loader type='pflash' readonly='no' secure='yes'>/srv/web_OVMF.fd</loader>"
"""Firmware with its variables in one file."""


@pytest.mark.parametrize(
    ("os", "found"),
    [
        ("<os><nvram> /srv/web.fd </nvram></os>", {"nvram": Path("/srv/web.fd")}),
        ("<os><nvram type='file'>\n <source file='/srv/web.fd'/>\n</nvram></os>", {"nvram": Path("/srv/web.fd")}),
        ("<os><nvram type='block'><source dev='/dev/vg/web'/></nvram></os>", {"nvram": None}),
        ("<os firmware='efi'><nvram type='network'><source name='pool/web'/></nvram></os>", {"nvram": None}),
        ("<os firmware='efi'/>", {"nvram": Path("/var/lib/libvirt/qemu/nvram/web_VARS.fd")}),
        (f"<os>{WRITTEN}</os>", {"loader": Path("/srv/web_OVMF.fd")}),
        ("<os><loader type='pflash'>/usr/share/code.fd</loader><nvram>/n</nvram></os>", {"nvram": Path("/n")}),
        ("<os><loader type='pflash' readonly='yes'>/usr/share/code.fd</loader></os>", {}),
        ("<os><loader type='rom'>/usr/share/bios.bin</loader></os>", {}),
        ("<os/>", {}),
        ("", {}),
    ],
)
def test_where_the_firmware_of_a_vm_lies(os: str, found: dict[str, Path | None]) -> None:
    assert firmware_files(ET.fromstring(f"<domain><name>web</name>{os}</domain>")) == found  # noqa: S314  (our own)


def test_variables_in_the_newer_form_are_the_restored_ones() -> None:
    start, end = OLD.index("<nvram"), OLD.index("</nvram>") + len("</nvram>")
    newer = "<nvram type='file' format='qcow2' template='/t'><source file='/srv/web.fd'/></nvram>"
    xml = rewrite_domain(OLD[:start] + newer + OLD[end:], "web2", NEW_UUID, FILES).xml
    assert '<nvram format="qcow2">/r/nvram</nvram>' in xml


@pytest.mark.parametrize("held", [True, False])
def test_a_copy_never_writes_the_firmware_of_the_old_vm(held: bool) -> None:
    start, end = OLD.index("<loader"), OLD.index("</nvram>") + len("</nvram>")
    xml = OLD[:start] + WRITTEN + "<varstore path='/srv/web.json'/>" + OLD[end:]
    boot = {"loader": Path("/r/loader")} if held else {}
    result = rewrite_domain(xml, "web2", NEW_UUID, replace(FILES, boot=boot))
    assert "/srv/web" not in result.xml
    assert ("loader is not in the restore point" in result.dropped) is not held
    assert "varstore is not in the restore point" in result.dropped
    if held:
        assert '<loader type="pflash" readonly="no" secure="yes">/r/loader</loader>' in result.xml


def test_boot_files_that_the_point_lacks_are_dropped_and_named() -> None:
    domain, dropped = rewritten(RestoredFiles(Path("/r"), "raw", {"vda": Path("/r/vda.raw")}, {}))
    assert domain.find("os/nvram") is None
    assert domain.find("os/kernel") is None
    assert any("nvram" in words for words in dropped)
    assert any("kernel" in words for words in dropped)
    assert domain.find("devices/disk/driver").get("type") == "raw"  # type: ignore[union-attr]  # None fails


def test_ports_and_sockets_are_new() -> None:
    domain, dropped = rewritten()
    assert domain.find("devices/channel/source") is None
    assert domain.find("devices/serial/source").get("path") == "/r/web-serial.log"  # type: ignore[union-attr]  # None fails
    assert domain.find("devices/graphics").attrib == {"type": "vnc", "port": "-1", "autoport": "yes"}  # type: ignore[union-attr]  # None fails
    assert domain.find("devices/vsock/cid").attrib == {"auto": "yes"}  # type: ignore[union-attr]  # None fails
    assert domain.find("seclabel") is None
    assert domain.find("{http://libvirt.org/schemas/domain/qemu/1.0}commandline") is None, "it may be the old VM's disk"
    assert any(words.startswith("qemu:commandline") for words in dropped)


def test_nothing_is_shared_with_the_old_vm_and_all_that_goes_is_named() -> None:
    shares = """
        <filesystem type='mount'><source dir='/srv/web'/><target dir='share'/></filesystem>
        <shmem name='ring'><model type='ivshmem-plain'/></shmem>
        <redirdev bus='usb' type='spicevmc'/>
        <interface type='hostdev'><mac address='52:54:00:00:00:09'/></interface>
    </devices>"""
    new = rewrite_domain(OLD.replace("</devices>", shares), "x", NEW_UUID, FILES)
    devices = ET.fromstring(new.xml).find("devices")  # noqa: S314
    assert devices is not None
    gone = ("filesystem", "shmem", "redirdev", "interface[@type='hostdev']")
    assert [devices.find(tag) for tag in gone] == [None] * 4
    for words in ("filesystem /srv/web", "shmem ring", "redirdev", "network card of type hostdev"):
        assert words in new.dropped


@pytest.mark.parametrize("xml", ["", "<domain", "<domain/>"])
def test_damaged_xml_is_an_integrity_error(xml: str) -> None:
    with pytest.raises(IntegrityError):
        rewrite_domain(xml, "x", NEW_UUID, FILES)


def plugged(networks: Networks) -> ET.Element:
    files = RestoredFiles(Path("/srv/new"), "qcow2", {}, {})
    root = ET.fromstring(rewrite_domain(OLD, "new", NEW_UUID, files, networks).xml)  # noqa: S314
    found = root.find("devices/interface")
    assert found is not None
    return found


def test_networks_are_kept_replaced_or_none() -> None:
    def network(words: list[str]) -> tuple[str | None, str | None]:
        card = plugged(parse_networks(words))
        source = card.find("source")
        return card.get("type"), None if source is None else source.get("network")

    assert network([]) == network(["keep"]) == ("network", "default")
    assert network(["default=lab"]) == ("network", "lab")
    assert network(["isolated"]) == ("ethernet", None)


@pytest.mark.parametrize("words", [["nothing"], ["isolated", "keep"], ["=x"], ["other=lab"]])
def test_networks_that_make_no_sense(words: list[str]) -> None:
    with pytest.raises(UsageError, match="--network"):
        plugged(parse_networks(words))


WAYS_OUT = """
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>web</name><os/><devices>
  <disk type='file' device='floppy'><source file='/etc/hostname'/><target dev='fda'/></disk>
  <interface type='bridge'><source bridge='br0'/></interface>
  <serial type='pty'><log file='/var/log/web.log' append='off'/></serial>
  <serial type='tcp'><source mode='connect' host='10.0.0.1' service='4'/><protocol type='raw'/></serial>
  <parallel type='dev'><source path='/dev/parport0'/></parallel>
  <console type='udp'><source mode='connect' host='10.0.0.1' service='5'/><target type='virtio'/></console>
  <channel type='tcp'><source mode='connect' host='10.0.0.1' service='6'/><target type='virtio' name='x'/></channel>
  <input type='evdev'><source dev='/dev/input/event1'/></input>
  <graphics type='vnc' socket='/run/web-vnc.sock' listen='10.0.0.1'><listen type='socket' socket='/run/web-vnc.sock'/>
  </graphics>
  <rng model='virtio'><backend model='egd' type='udp'><source mode='connect' host='10.0.0.1' service='7'/></backend>
  </rng>
</devices>
<qemu:commandline><qemu:arg value='-nic'/><qemu:arg value='user'/><qemu:arg value='-hda'/>
<qemu:arg value='/srv/web.img'/>
</qemu:commandline></domain>"""


def test_a_drill_reaches_nothing_outside_of_its_folder() -> None:
    alone = isolated_xml(WAYS_OUT, Path("/r"), "")
    xml = rewrite_domain(alone, "drill", NEW_UUID, RestoredFiles(Path("/r"), "qcow2", {}, {})).xml
    outside = ("10.0.0.1", "-nic", "/srv/", "/etc/", "/dev/parport0", "/dev/input", "/run/", "br0", "/var/")
    assert [word for word in outside if word in xml] == []
    devices = ET.fromstring(xml).find("devices")  # noqa: S314  (our own output)
    assert devices is not None
    assert [port.get("type") for port in devices if port.tag in ("serial", "parallel", "channel")] == [
        "file", "null", "null", "null"
    ]  # fmt: skip
    assert devices.findtext("rng/backend[@model='random']") == "/dev/urandom"
