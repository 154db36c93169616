"""The domain XML of a restored VM: a new VM beside the old one, which shares no disk, address or socket with it.

Pure text work, no libvirt. What the old VM must keep for itself (MAC addresses, UUID, sockets, host devices, disks
that were not restored) is replaced or dropped, and all that is dropped is named. Source: libvirt's "Domain XML
format".
"""

from __future__ import annotations

import secrets
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vmcellar.errors import IntegrityError, UsageError
from vmcellar.sources.domain_files import LOADER, NVRAM, own_files, path_in

LIBVIRT_NVRAM = Path("/var/lib/libvirt/qemu/nvram")
TPM_ARCHIVE = "tpm.tar"
"""The artifact that holds the state of an emulated TPM."""

_SHARES = ("filesystem", "redirdev", "shmem", "smartcard")
"""Devices that a VM has in common with its host or with others."""
_COMMAND_LINE = "{http://libvirt.org/schemas/domain/qemu/1.0}commandline"

ET.register_namespace("qemu", "http://libvirt.org/schemas/domain/qemu/1.0")


@dataclass(frozen=True, slots=True)
class RestoredFiles:
    """Where a point's parts were restored to: `images` by disk target, `boot` files by artifact name.

    `folder` is where the files lie; logs of the new VM's serial ports go there, too. `image_format` is that of all
    images.
    """

    folder: Path
    image_format: str
    images: Mapping[str, Path]
    boot: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class Networks:
    """What the new VM's network cards are plugged into.

    `isolated` cards have a tap device of their own that nothing is plugged into; `renamed` maps names of networks,
    bridges or host devices to other ones.
    """

    isolated: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)


KEPT = Networks()


def parse_networks(words: Sequence[str]) -> Networks:
    """From `isolated`, `keep` or any number of `NAME=NAME`; UsageError for anything else."""
    if list(words) in ([], ["keep"]):
        return KEPT
    if list(words) == ["isolated"]:
        return Networks(isolated=True)
    pairs = [word.partition("=") for word in words]
    for (old, _, new), word in zip(pairs, words, strict=True):
        if not (old and new):
            raise UsageError(f"--network {word}: not understood", hint="isolated, keep, or OLD=NEW once or more often")
    return Networks(renamed={old: new for old, _, new in pairs})


@dataclass(frozen=True, slots=True)
class RewrittenDomain:
    """The XML of the new VM, and what of the old one is not in it, in words for people."""

    xml: str
    dropped: tuple[str, ...]


def rewrite_domain(xml: str, name: str, uuid: str, files: RestoredFiles, networks: Networks = KEPT) -> RewrittenDomain:
    """The XML of a new VM `name` that uses only the restored files. IntegrityError when `xml` is no domain XML."""
    try:
        domain = ET.fromstring(xml)  # noqa: S314  (libvirt's own output, from a point whose signature was checked)
    except ET.ParseError as error:
        raise IntegrityError(f"the domain XML in the restore point cannot be parsed: {error}") from error
    dropped: list[str] = []
    _set_identity(domain, name, uuid)
    _set_boot_files(domain, files.boot, dropped)
    devices = domain.find("devices")
    if devices is None:
        raise IntegrityError("the domain XML in the restore point has no devices")
    _set_disks(devices, files, dropped)
    _drop_shares(domain, devices, dropped)
    _drop_host_resources(devices, dropped)
    _set_networks(devices)
    _plug(devices, networks)
    _set_sockets(devices, files.folder)
    _drop_live_state(domain)
    return RewrittenDomain(ET.tostring(domain, encoding="unicode"), tuple(dropped))


def _set_identity(domain: ET.Element, name: str, uuid: str) -> None:
    domain.attrib.pop("id", None)
    _child(domain, "name").text = name
    _child(domain, "uuid").text = uuid
    for entry in domain.iterfind("sysinfo/system/entry[@name='uuid']"):
        entry.text = uuid
    for genid in domain.findall("genid"):
        genid.text = None  # empty: libvirt makes a new one, which tells the guest that it was restored
    for title in domain.findall("title"):
        domain.remove(title)


def _set_boot_files(domain: ET.Element, boot: Mapping[str, Path], dropped: list[str]) -> None:
    """Point the firmware's variables and a direct boot at the restored files.

    A template must go with the old path: libvirt would fill a missing file from it without a word. A definition of
    `firmware='efi'` need not name the variables' file: libvirt 9 then gives each domain a new one at its first start,
    so the restored one has to be named.
    """
    os_element = _child(domain, "os")
    for tag, element in own_files(os_element):
        if tag in boot:
            kept = ("format",) if tag == NVRAM else tuple(element.keys()) if tag == LOADER else ()
            attributes = {name: element.get(name, "") for name in kept if element.get(name)}
            element.clear()
            element.attrib.update(attributes)
            element.text = str(boot[tag])
        else:
            dropped.append(f"{tag} is not in the restore point")
            os_element.remove(element)
    for element in os_element.findall("varstore"):
        dropped.append("varstore is not in the restore point")
        os_element.remove(element)
    if NVRAM in boot and os_element.find(NVRAM) is None and os_element.get("firmware") == "efi":
        ET.SubElement(os_element, NVRAM).text = str(boot[NVRAM])


def firmware_files(domain: ET.Element) -> dict[str, Path | None]:
    """Where the variables of a VM's firmware lie, and firmware that it writes; None for what is no file.

    A definition of `firmware='efi'` need not say: libvirt's own place is meant then, as of version 9.
    """
    os = domain.find("os")
    if os is None:
        return {}
    found: dict[str, Path | None] = {}
    for name, element in own_files(os):
        if name in (NVRAM, LOADER):
            path = path_in(element)
            found[name] = Path(path) if path and element.find("source[@dev]") is None else None
    if os.get("firmware") == "efi" and found.get(NVRAM) is None and not os.findall(f"{NVRAM}/source"):
        found[NVRAM] = LIBVIRT_NVRAM / f"{domain.findtext('name')}_VARS.fd"
    return found


def _set_disks(devices: ET.Element, files: RestoredFiles, dropped: list[str]) -> None:
    for disk in devices.findall("disk"):
        target = disk.find("target")
        name = target.get("dev", "") if target is not None else ""
        if disk.get("device", "disk") in ("cdrom", "floppy"):
            _eject_medium(disk, name, dropped)
        elif name in files.images:
            _point_disk_at(disk, files.images[name], files.image_format)
        else:
            dropped.append(f"disk {name} was not restored")
            devices.remove(disk)


def _eject_medium(disk: ET.Element, name: str, dropped: list[str]) -> None:
    """One that is missing, and a floppy: the old VM may write it."""
    source = disk.find("source")
    floppy = disk.get("device") == "floppy"
    if source is not None and (floppy or not Path(source.get("file", "")).is_file()):
        dropped.append(f"the medium in {name}")
        disk.remove(source)


def _point_disk_at(disk: ET.Element, image: Path, image_format: str) -> None:
    for tag in ("source", "backingStore", "mirror", "auth", "encryption"):
        for element in disk.findall(tag):
            disk.remove(element)
    disk.set("type", "file")
    disk.set("device", "disk")
    for attribute in ("sgio", "rawio", "model"):
        disk.attrib.pop(attribute, None)
    driver = disk.find("driver")
    if driver is None:
        driver = ET.Element("driver", {"name": "qemu"})
        disk.insert(0, driver)
    driver.set("type", image_format)
    disk.insert(1, ET.Element("source", {"file": str(image)}))


def _drop_shares(domain: ET.Element, devices: ET.Element, dropped: list[str]) -> None:
    """What the copy would have together with the old VM: its folders, its memory, and what its definition hands to QEMU
    past libvirt, which may be its disk.
    """
    for tag in _SHARES:
        for element in devices.findall(tag):
            source = element.find("source")
            names = [element.get("name", ""), *(source.attrib.values() if source is not None else ())]
            dropped.append(f"{tag} {' '.join(name for name in names if name)}".strip())
            devices.remove(element)
    for interface in devices.findall("interface[@type='hostdev']"):
        dropped.append("network card of type hostdev")
        devices.remove(interface)
    for element in domain.findall(_COMMAND_LINE):
        words = " ".join(each.get("value", "") for each in element if each.tag.endswith("arg"))
        dropped.append(f"qemu:commandline {words}".strip())
        domain.remove(element)


def _drop_host_resources(devices: ET.Element, dropped: list[str]) -> None:
    """Things of the host that two VMs cannot use at once; a shared NVDIMM file would even be written by both."""
    for tag in ("hostdev", "lease"):
        for element in devices.findall(tag):
            dropped.append(f"{tag} {element.get('type', '')}".strip())
            devices.remove(element)
    for memory in devices.findall("memory"):
        path = memory.findtext("source/path")
        if path:
            dropped.append(f"memory device on {path}")
            devices.remove(memory)
    for device in devices.findall("input"):
        if device.get("type") in ("evdev", "passthrough"):
            dropped.append(f"input device of type {device.get('type')}")
            devices.remove(device)
    for tpm in devices.findall("tpm"):
        backend = tpm.find("backend")
        if backend is not None and backend.get("type") != "emulator":
            dropped.append(f"TPM of type {backend.get('type')}")
            devices.remove(tpm)


def _set_networks(devices: ET.Element) -> None:
    for interface in devices.findall("interface"):
        mac = interface.find("mac")
        if mac is None:
            mac = ET.SubElement(interface, "mac")
        mac.attrib.clear()
        mac.set("address", _new_mac())
        source = interface.find("source")
        if source is not None:
            source.attrib.pop("portid", None)
        for target in interface.findall("target"):
            interface.remove(target)
    for cid in devices.iterfind("vsock/cid"):
        cid.attrib.clear()
        cid.set("auto", "yes")
    for graphics in devices.findall("graphics"):
        if graphics.get("port") is not None:
            graphics.set("port", "-1")
            graphics.set("autoport", "yes")
        for attribute in ("websocket", "socket"):
            graphics.attrib.pop(attribute, None)
        for listen in graphics.findall("listen[@socket]"):
            listen.attrib.pop("socket")


def _plug(devices: ET.Element, networks: Networks) -> None:
    """Plug the cards in. Names that no card has are a mistake of the user: UsageError."""
    unknown = set(networks.renamed)
    for interface in devices.findall("interface"):
        if networks.isolated:
            interface.set("type", "ethernet")
            for tag in ("source", "virtualport", "vlan", "portOptions"):
                for element in interface.findall(tag):
                    interface.remove(element)
        source = interface.find("source")
        for attribute in ("network", "bridge", "dev"):
            old = source.get(attribute, "") if source is not None else ""
            if source is not None and old in networks.renamed:
                source.set(attribute, networks.renamed[old])
                unknown.discard(old)
    if unknown:
        raise UsageError(
            f"--network {min(unknown)}=...: no network card of the VM is plugged into {min(unknown)}",
            hint="`vmcellar show POINT` and the point's domain.xml tell what it is plugged into",
        )


def _set_sockets(devices: ET.Element, folder: Path) -> None:
    """Ports on sockets and files: libvirt chooses the path of channels; serial ports go beside the images."""
    for channel in devices.findall("channel[@type='unix']"):
        for source in channel.findall("source"):
            channel.remove(source)
    for tag in ("serial", "console", "parallel", "channel"):
        for port in devices.findall(tag):
            for log in port.findall("log"):
                log.set("file", str(folder / Path(log.get("file", "")).name))
            path = port.find("source[@path]")
            if port.get("type") in ("file", "unix") and path is not None:
                path.set("path", str(folder / Path(path.get("path", "")).name))
            port.attrib.pop("tty", None)


def _drop_live_state(domain: ET.Element) -> None:
    for label in domain.findall("seclabel"):
        if label.get("type") == "dynamic":
            domain.remove(label)
    for parent in list(domain.iter()):
        for alias in parent.findall("alias"):
            if not alias.get("name", "").startswith("ua-"):
                parent.remove(alias)


def _child(parent: ET.Element, tag: str) -> ET.Element:
    element = parent.find(tag)
    return ET.SubElement(parent, tag) if element is None else element


def _new_mac() -> str:
    """A random address in the range that is QEMU's own, 52:54:00."""
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))
