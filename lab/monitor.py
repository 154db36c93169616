"""QEMU's monitor, through libvirt: look at a domain's disks, export them, and write to them without any guest code.

Writes go through the device's own block backend, so dirty bitmaps and copy-before-write see them as if the guest had
written: a paused domain, half a second old, serves for most tests. Source: QEMU's QMP reference, and `help` of qemu-io.
"""

from __future__ import annotations

import json
import os
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu
import numpy as np

from lab.paths import give_to_qemu
from lab.shellcommand import LabError


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """How QEMU knows one disk: `device` is the path of its backend, `node` its format node (caches included)."""

    device: str
    node: str


def seeded_bytes(length: int, seed: int) -> bytes:
    """`length` incompressible bytes that depend on the seed only."""
    return np.random.default_rng(seed).bytes(length)


def monitor(domain: libvirt.virDomain, command: str, **arguments: Any) -> Any:
    """Run one QMP command and return its answer; LabError with QEMU's reason when it refuses."""
    request = json.dumps({"execute": command, "arguments": arguments})
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, request, 0))
    if "error" in answer:
        raise LabError(f"QEMU of {domain.name()} refused {command}: {answer['error']['desc']}")
    return answer["return"]


def block_devices(domain: libvirt.virDomain) -> dict[str, BlockDevice]:
    """The running domain's disks by target."""
    targets = _targets_by_alias(domain)
    devices = {}
    for block in monitor(domain, "query-block"):
        path = block["qdev"]
        alias = next((part for part in path.split("/") if part in targets), None)
        if alias is not None:
            devices[targets[alias]] = BlockDevice(path, block["inserted"]["node-name"])
    return devices


def poke_many(domain: libvirt.virDomain, target: str, pieces: Iterable[tuple[int, bytes]], folder: Path) -> None:
    """Write pieces (offset in bytes, data) to a disk, behind the guest's back; `folder` is one that QEMU may read."""
    device = block_devices(domain)[target].device
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        give_to_qemu(Path(file.name))
        for offset, data in pieces:
            os.pwrite(file.fileno(), data, 0)
            file.truncate(len(data))
            _qemu_io(domain, device, f"write -q -s {file.name} {offset} {len(data)}")


def poke_zero(domain: libvirt.virDomain, target: str, offset: int, length: int) -> None:
    """Write zeroes with QEMU's write-zeroes request, which leaves the range allocated or a zero cluster."""
    _qemu_io(domain, block_devices(domain)[target].device, f"write -q -z {offset} {length}")


def poke_discard(domain: libvirt.virDomain, target: str, offset: int, length: int) -> None:
    """Discard a range, as the guest's TRIM does."""
    _qemu_io(domain, block_devices(domain)[target].device, f"discard -q {offset} {length}")


def _targets_by_alias(domain: libvirt.virDomain) -> dict[str, str]:
    targets = {}
    for disk in ET.fromstring(domain.XMLDesc()).iterfind("devices/disk[@device='disk']"):
        name, device = disk.find("alias"), disk.find("target")
        if name is not None and device is not None:
            targets[name.attrib["name"]] = device.attrib["dev"]
    return targets


def _qemu_io(domain: libvirt.virDomain, device: str, request: str) -> None:
    flags = libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
    said = libvirt_qemu.qemuMonitorCommand(domain, f'qemu-io -d {device} "{request}"', flags).strip()
    if said:
        raise LabError(f"QEMU of {domain.name()}, device {device}: {request}: {said}")
