"""Which disks a domain has, and how each can be backed up: tracked, full each time, or not at all (pitfall 13)."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmcellar.sources import libvirt_pool
from vmcellar.sources.base import PreviousDisk, SourceDisk, UncoveredDisk

if TYPE_CHECKING:
    import libvirt

_QCOW2_MAGIC = b"QFI\xfb"
_QCOW2_VERSION = slice(4, 8)
_QCOW2_CLUSTER_BITS = slice(20, 24)
_QCOW2_CLUSTER_BITS_MAX = 21
QCOW2_OLD = "qcow2 version 2: no bitmap (`qemu-img amend -o compat=1.1 IMAGE` while the VM is off)"
_COMMAND_LINE = "{http://libvirt.org/schemas/domain/qemu/1.0}"
_BESIDE = (
    ("devices/hostdev[@type='scsi']", "hostdev", "a SCSI device of the host passed through"),
    ("devices/hostdev[@type='scsi_host']", "scsi_host", "a SCSI target of the host (vhost)"),
    ("devices/memory[@model='nvdimm']", "nvdimm", "an NVDIMM"),
)
_DISK_OPTIONS = frozenset({"drive", "blockdev", "hda", "hdb", "hdc", "hdd", "mtdblock", "pflash", "sd"})
"""Options of QEMU's command line that give a VM a disk; QEMU takes one dash or two. Source: qemu(1)."""
_COVERED_TYPES = frozenset({"file", "block", "network", "volume"})


@dataclass(frozen=True, slots=True)
class Layout:
    """A domain's disks by what can be done with them; sizes are 0 until `decide`."""

    disks: tuple[SourceDisk, ...]
    uncovered: tuple[UncoveredDisk, ...]
    warnings: tuple[str, ...]


def read_layout(xml: str, excluded: Collection[str], elsewhere: libvirt.virConnect | None = None) -> Layout:
    """Classify every disk of a live domain XML. `elsewhere` is the connection to another host, if the images lie there:
    of what this host has under their names nothing is read.
    """
    disks: list[SourceDisk] = []
    uncovered: list[UncoveredDisk] = []
    domain = ET.fromstring(xml)  # noqa: S314
    for element in domain.iterfind("devices/disk"):
        target = _attribute(element, "target", "dev")
        refusal = _refusal(element, target in excluded)
        if refusal is not None:
            uncovered.append(UncoveredDisk(target, refusal[0], refusal[1]))
        else:
            disks.append(_source_disk(element, target, elsewhere))
    for name, what in beside_disks(domain):
        left = "excluded by the policy" if name in excluded else f"{what}: QEMU's block layer does not serve it"
        uncovered.append(UncoveredDisk(name, left, name in excluded))
    present = {d.target for d in disks} | {u.target for u in uncovered}
    warnings = tuple(f"{name}: excluded, but the VM has no such disk" for name in sorted(set(excluded) - present))
    return Layout(tuple(disks), tuple(uncovered), warnings)


def beside_disks(domain: ET.Element) -> list[tuple[str, str]]:
    """What may hold data and is no disk to libvirt: (a name by which a job can exclude it, what it is).

    Names are libvirt's aliases, which a user can set (`<alias name='ua-data'/>`); else the kind and its number.
    """
    found = []
    for path, kind, what in _BESIDE:
        for number, element in enumerate(domain.iterfind(path)):
            found.append((_attribute(element, "alias", "name") or f"{kind}{number}", what))
    words = [arg.get("value", "") for arg in domain.iterfind(f"{_COMMAND_LINE}commandline/{_COMMAND_LINE}arg")]
    if any(word.startswith("-") and word.lstrip("-") in _DISK_OPTIONS for word in words):
        found.append(("commandline", "a disk given to QEMU past libvirt (qemu:commandline)"))
    return found


def decide(
    disk: SourceDisk, size: int, previous: PreviousDisk | None, broken: str | None, everything: str
) -> SourceDisk:
    """`disk` with its size and, if it must be read in full, why.

    `broken` says why the parent's bitmap of this disk cannot be used; `everything` why no bitmap at all is to be used.
    """
    return replace(disk, size=size, full_reason=_full_reason(disk, size, previous, broken, everything))


def _full_reason(
    disk: SourceDisk, size: int, previous: PreviousDisk | None, broken: str | None, everything: str
) -> str:
    if not disk.tracked:
        return disk.reason
    if everything:
        return everything
    if previous is None:
        return "new disk: the parent does not hold it"
    if previous.identity != disk.identity:
        return "image replaced since the parent"
    if size < previous.size:
        return "disk shrank"
    return broken or ""


def _refusal(element: ET.Element, excluded: bool) -> tuple[str, bool] | None:
    """Why a disk cannot be held, and whether that is no loss; None when it can."""
    device, kind = element.get("device", "disk"), element.get("type", "file")

    def has(tag: str) -> bool:
        return element.find(tag) is not None

    checks = (
        (excluded, "excluded by the policy", True),
        (device in ("cdrom", "floppy"), f"{device}: a removable medium", True),
        (not has("source"), "no medium", True),
        (has("readonly"), "read-only", True),
        (has("shareable"), "shareable: other VMs write to it, so this VM's instant does not hold it", False),
        (has("transient"), "transient: what is written to it goes when the VM stops", False),
        (device != "disk", f"passthrough ({device}): QEMU does not see what the guest writes", False),
        (kind not in _COVERED_TYPES, f"{kind} disk: QEMU's block layer does not serve it", False),
    )
    return next(((reason, expected) for applies, reason, expected in checks if applies), None)


def _source_disk(element: ET.Element, target: str, elsewhere: libvirt.virConnect | None) -> SourceDisk:
    form = _attribute(element, "driver", "type") or "raw"
    image = _image(element)
    serial = (element.findtext("serial") or "").strip()
    local = Path(image) if element.get("type") in ("file", "block") else None
    if local is not None and elsewhere is not None:
        reason = _untracked_reason_there(form, elsewhere, image)
        local = None
        header = b""
    else:
        header = _header(local) if local else b""
        reason = _untracked_reason(form, header, local is not None)
    identity = ";".join(filter(None, (f"serial={serial}", f"image={image}", _file_identity(local))))
    return SourceDisk(target, 0, identity, form, not reason, reason, "", image, serial, _cluster(form, header))


def _untracked_reason_there(form: str, elsewhere: libvirt.virConnect, image: str) -> str:
    """The same for an image of another host. QEMU opened it as what the XML says; a pool may know its version."""
    if form != "qcow2":
        return f"{form} disk: no bitmap"
    return QCOW2_OLD if libvirt_pool.qcow2_compat(elsewhere, image) == "0.10" else ""


def _untracked_reason(form: str, header: bytes, local: bool) -> str:
    if form != "qcow2":
        return f"{form} disk: no bitmap"
    if not local:
        return "network disk: its image format cannot be checked, so no bitmap"
    if not header.startswith(_QCOW2_MAGIC):
        return "the image cannot be read here, so no bitmap"
    if int.from_bytes(header[_QCOW2_VERSION], "big") < 3:
        return QCOW2_OLD
    return ""


def _file_identity(path: Path | None) -> str:
    """The inode: another file under the same name is another image. Not of another host's: there its bitmaps tell.

    An older state of the same image needs no mark: QEMU refuses to revert to an internal snapshot while the image has
    bitmaps (pitfall 16), and a copy from before the parent lacks the parent's bitmap (pitfall 3).
    """
    try:
        return f"inode={path.stat().st_ino}" if path else ""
    except OSError:
        return ""


def _header(path: Path) -> bytes:
    """The fixed start of an image: written once, so reading it beside a running QEMU is safe (unlike all the rest)."""
    try:
        with path.open("rb") as file:
            return file.read(24)
    except OSError:
        return b""


def _cluster(form: str, header: bytes) -> int:
    bits = int.from_bytes(header[_QCOW2_CLUSTER_BITS], "big")
    return 1 << bits if form == "qcow2" and header.startswith(_QCOW2_MAGIC) and bits <= _QCOW2_CLUSTER_BITS_MAX else 0


def _image(element: ET.Element) -> str:
    source = element.find("source")
    if source is None:
        return ""
    if element.get("type") == "network":
        hosts = [h.get("socket") or f"{h.get('name', '')}:{h.get('port', '')}" for h in source.iterfind("host")]
        return f"{source.get('protocol', '')}://{','.join(hosts)}/{source.get('name', '')}"
    if element.get("type") == "volume":
        return f"{source.get('pool', '')}/{source.get('volume', '')}"
    return source.get("file") or source.get("dev") or ""


def _attribute(element: ET.Element, child: str, name: str) -> str:
    found = element.find(child)
    return "" if found is None else found.get(name, "")
