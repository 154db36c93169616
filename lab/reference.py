"""What the disks held at one instant, taken by tools that share no code with the engine.

Reading a running domain's image file is wrong even while it is suspended: QEMU keeps changed qcow2 tables in memory
(pitfall 6). So a reference of a running domain always comes out of its QEMU, over NBD, copied by `qemu-img`:

- `of_guest` for a guest that is held still: every disk's node is exported by QEMU itself, outside any backup job.
- `of_job` while a pull-mode backup job is live: the job's exports are the disks at the instant at which the job began,
  whatever the guest writes meanwhile. It finds them through libvirt alone, not through what our engine recorded.
- a guest that is off: `qemu-img` reads its image files.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import libvirt

from lab.guest import LabGuest
from lab.monitor import block_devices, monitor
from lab.paths import vm_folder
from lab.shellcommand import LabError, call


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The first difference of two images, in words; `target` names the disk."""

    target: str
    problem: str


def of_guest(guest: LabGuest, folder: Path) -> dict[str, Path]:
    """Raw copies FOLDER/TARGET.raw of all disks as they are now; a running guest is suspended meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    if not guest.domain.isActive():
        return {
            target: _copy(str(path), guest.disks[target].format, folder, target) for target, path in guest.paths.items()
        }
    with guest.suspended(), vm_folder("nbd") as place:
        socket = place / "socket"
        monitor(guest.domain, "nbd-server-start", addr={"type": "unix", "data": {"path": str(socket)}})
        try:
            return {
                target: _copy_node(guest.domain, target, device.node, socket, folder)
                for target, device in block_devices(guest.domain).items()
            }
        finally:
            monitor(guest.domain, "nbd-server-stop")


def of_job(domain: libvirt.virDomain, folder: Path) -> dict[str, Path]:
    """Raw copies FOLDER/TARGET.raw of all disks at the instant at which the domain's live pull-mode backup job began.

    LabError when no such job is live.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        job = ET.fromstring(domain.backupGetXMLDesc())
    except libvirt.libvirtError as error:
        raise LabError(f"domain {domain.name()} has no live backup job to copy from") from error
    server = job.find("server")
    if job.get("mode") != "pull" or server is None:
        raise LabError(f"the backup job of domain {domain.name()} is not a pull-mode job")
    copies = {}
    for disk in job.iterfind("disks/disk[@backup='yes']"):
        target = disk.attrib["name"]
        copies[target] = _copy(_uri(server, disk.get("exportname", target)), "raw", folder, target)
    return copies


def mismatches(expected: dict[str, Path], found: dict[str, Path], found_format: str = "raw") -> list[Mismatch]:
    """Compare whole disks: sizes and every byte, not allocation; an empty list means equal. `expected` are raw."""
    problems = [Mismatch(target, "is in one set only") for target in sorted(expected.keys() ^ found.keys())]
    for target in sorted(expected.keys() & found.keys()):
        problem = image_difference(expected[target], found[target], found_format)
        if problem:
            problems.append(Mismatch(target, problem))
    return problems


def image_difference(expected: Path, found: Path, found_format: str = "raw") -> str:
    """In what an image differs from a raw reference, first place first; empty when size and all bytes are equal."""
    sizes = [_size(expected, "raw"), _size(found, found_format)]
    if sizes[0] != sizes[1]:
        return f"size is {sizes[1]}, must be {sizes[0]}"
    try:
        call(["qemu-img", "compare", "-f", "raw", "-F", found_format, expected, found], seconds=600)
    except LabError as error:
        return str(error)
    return ""


def _size(path: Path, image_format: str) -> int:
    return int(json.loads(call(["qemu-img", "info", "-f", image_format, "--output=json", path]))["virtual-size"])


def _copy(source: str, source_format: str, folder: Path, target: str) -> Path:
    result = folder / f"{target}.raw"
    call(["qemu-img", "convert", "-f", source_format, "-O", "raw", source, result], seconds=600)
    return result


def _copy_node(domain: libvirt.virDomain, target: str, node: str, socket: Path, folder: Path) -> Path:
    name = f"lab-{target}"
    monitor(domain, "block-export-add", type="nbd", id=name, name=name, writable=False, **{"node-name": node})
    try:
        return _copy(f"nbd+unix:///{name}?socket={socket}", "raw", folder, target)
    finally:
        monitor(domain, "block-export-del", id=name, mode="hard")


def _uri(server: ET.Element, export: str) -> str:
    if server.get("transport") == "unix":
        return f"nbd+unix:///{export}?socket={server.attrib['socket']}"
    return f"nbd://{server.get('name', 'localhost')}:{server.get('port', '10809')}/{export}"
