"""The domain XML of a laboratory guest. Source: libvirt's "Domain XML format"."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Literal

from lab.accel import Accelerator
from lab.disks import DiskSpec
from lab.image import GuestImage

AGENT_CHANNEL = "org.qemu.guest_agent.0"
SHELL_CHANNEL = "lab.shell.0"
Firmware = Literal["bios", "uefi"]
"""What boots a guest from its first disk: SeaBIOS, or OVMF with an emulated TPM."""

KERNEL_ARGUMENTS = "quiet loglevel=1 mitigations=off random.trust_cpu=on panic=1"


def domain_xml(
    *,
    name: str,
    uuid: str,
    boot: GuestImage | Firmware,
    accelerator: Accelerator,
    disks: list[tuple[DiskSpec, Path]],
    memory: int = 128,
    agent: bool = True,
) -> str:
    """The XML of a guest; `memory` in MiB. libvirt chooses socket paths, so a copy of the domain gets its own."""
    domain = ET.Element("domain", type="kvm" if accelerator == "kvm" else "qemu")
    _leaf(domain, "name", name)
    _leaf(domain, "uuid", uuid)
    _leaf(domain, "memory", str(memory), unit="MiB")
    _leaf(domain, "vcpu", "1")
    _add_boot(domain, boot)
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    _leaf(domain, "on_poweroff", "destroy")
    _leaf(domain, "on_reboot", "restart")
    _leaf(domain, "on_crash", "destroy")
    devices = ET.SubElement(domain, "devices")
    for spec, path in disks:
        devices.append(disk_element(spec, path))
    ET.SubElement(devices, "controller", type="scsi", model="virtio-scsi")
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "memballoon", model="none")
    if boot == "uefi":
        tpm = ET.SubElement(devices, "tpm", model="tpm-crb")
        ET.SubElement(tpm, "backend", type="emulator", version="2.0")
    for channel in [SHELL_CHANNEL, *([AGENT_CHANNEL] if agent else [])]:
        _add_channel(devices, channel)
    return ET.tostring(domain, encoding="unicode")


def disk_element(spec: DiskSpec, path: Path) -> ET.Element:
    """The <disk> element of one disk."""
    disk = ET.Element("disk", type="file", device="disk")
    ET.SubElement(
        disk,
        "driver",
        name="qemu",
        type=spec.format,
        cache="writeback",
        discard="unmap",
        detect_zeroes=spec.detect_zeroes,
    )
    ET.SubElement(disk, "source", file=str(path))
    if spec.sector != 512:
        ET.SubElement(disk, "blockio", logical_block_size=str(spec.sector), physical_block_size=str(spec.sector))
    ET.SubElement(disk, "target", dev=spec.target, bus=_bus(spec))
    _leaf(disk, "serial", spec.serial)
    return disk


def _bus(spec: DiskSpec) -> Literal["virtio", "scsi"]:
    return "virtio" if spec.target.startswith("vd") else "scsi"


def _add_boot(domain: ET.Element, boot: GuestImage | Firmware) -> None:
    element = ET.SubElement(domain, "os", {"firmware": "efi"} if boot == "uefi" else {})
    _leaf(element, "type", "hvm", arch="x86_64", machine="q35" if boot == "uefi" else "pc")
    if boot == "uefi":
        ET.SubElement(ET.SubElement(element, "firmware"), "feature", enabled="no", name="secure-boot")
    if isinstance(boot, str):
        ET.SubElement(element, "boot", dev="hd")
        return
    _leaf(element, "kernel", str(boot.kernel))
    _leaf(element, "initrd", str(boot.initrd))
    _leaf(element, "cmdline", KERNEL_ARGUMENTS)


def _add_channel(devices: ET.Element, name: str) -> None:
    channel = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(channel, "target", type="virtio", name=name)


def _leaf(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text
