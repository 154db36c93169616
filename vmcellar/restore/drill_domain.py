"""The VM of a drill: the point's domain without a way out, and with a serial console that can be read.

No network card, or one on an isolated libvirt network: two machines with one identity must never meet. Ports that lead
to other hosts or devices lead nowhere. Shared folders, host devices, sockets, and what the definition hands to QEMU
past libvirt, which may be a network or the old VM's disk, are left out as in every restore (`domain_xml`).
"""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING

import libvirt

from vmcellar.errors import IntegrityError, PermanentError
from vmcellar.repository.evidence import SCREENSHOT_MAX
from vmcellar.sources.libvirt_agent import AGENT_CHANNEL

if TYPE_CHECKING:
    from PIL import Image

SERIAL_LOG = "serial.log"
_PORTS = ("serial", "parallel", "console", "channel")
_HARMLESS = frozenset({"pty", "file", "unix", "null", "vc", "spicevmc", "spiceport", "qemu-vdagent"})
"""Types of ports that stay within this host; paths of files and sockets are set anew by every restore."""


def isolated_xml(xml: str, folder: Path, network: str) -> str:
    """The domain XML for a drill in `folder`; IntegrityError when it is none."""
    try:
        domain = ET.fromstring(xml)  # noqa: S314  (from a point whose signature was checked)
    except ET.ParseError as error:
        raise IntegrityError(f"the domain XML in the restore point cannot be parsed: {error}") from error
    devices = domain.find("devices")
    if devices is None:
        raise IntegrityError("the domain XML in the restore point has no devices")
    for hub in devices.findall("hub"):
        devices.remove(hub)
    for interface in devices.findall("interface"):
        if network:
            _move(interface, network)
        else:
            devices.remove(interface)
    _cut_off(devices)
    _log_serial(devices, folder / SERIAL_LOG)
    return ET.tostring(domain, encoding="unicode")


def _move(interface: ET.Element, network: str) -> None:
    model = interface.find("model")
    for child in list(interface):
        interface.remove(child)
    interface.attrib.clear()
    interface.set("type", "network")
    ET.SubElement(interface, "source", network=network)
    if model is not None:
        interface.append(model)


def _cut_off(devices: ET.Element) -> None:
    """Let ports that lead to other hosts or to devices lead nowhere, and show the screen on this host only."""
    for port in (port for tag in _PORTS for port in devices.findall(tag)):
        if port.get("type") not in _HARMLESS:
            for child in (child for tag in ("source", "protocol") for child in port.findall(tag)):
                port.remove(child)
            port.set("type", "null")
    for backend in devices.iterfind("rng/backend[@model='egd']"):
        backend.clear()
        backend.set("model", "random")
        backend.text = "/dev/urandom"
    for graphics in devices.findall("graphics"):
        graphics.attrib.pop("listen", None)
        for element in graphics.findall("listen"):
            graphics.remove(element)


def _log_serial(devices: ET.Element, log: Path) -> None:
    """The first serial port writes into a file; consoles that are its shadow go, libvirt makes them anew."""
    for console in devices.findall("console"):
        target = console.find("target")
        if target is None or target.get("type", "serial") == "serial":
            devices.remove(console)
    serial = devices.find("serial")
    if serial is None:
        serial = ET.SubElement(devices, "serial")
    for child in serial.findall("source") + serial.findall("protocol") + serial.findall("log"):
        serial.remove(child)
    serial.set("type", "file")
    serial.attrib.pop("tty", None)
    serial.insert(0, ET.Element("source", path=str(log)))


def check_isolated(connection: libvirt.virConnect, network: str) -> None:
    """PermanentError unless `network` is a running libvirt network that leads nowhere."""
    try:
        found = connection.networkLookupByName(network)
    except libvirt.libvirtError as error:
        raise PermanentError(
            f"there is no libvirt network {network}", hint="see `virsh net-list`, or leave `network:` of the drill out"
        ) from error
    forward = ET.fromstring(found.XMLDesc()).find("forward")  # noqa: S314  (libvirt's own output)
    if forward is not None and forward.get("mode", "nat") != "none":
        raise PermanentError(
            f"libvirt network {network} leads out of this host ({forward.get('mode', 'nat')})",
            hint="a drill runs a copy of a VM: name an isolated network (one without <forward>)",
        )
    if not found.isActive():
        raise PermanentError(f"libvirt network {network} is not active", hint=f"type `virsh net-start {network}`")


def has_agent(xml: str) -> bool:
    """Whether the domain has the guest agent's channel."""
    return any(t.get("name") == AGENT_CHANNEL for t in ET.fromstring(xml).iterfind("devices/channel/target"))  # noqa: S314


def serial_text(folder: Path) -> str:
    """What the guest wrote to its serial console."""
    try:
        return (folder / SERIAL_LOG).read_text(errors="replace")
    except OSError:
        return ""


def screenshot(connection: libvirt.virConnect, domain: libvirt.virDomain) -> bytes:
    """The screen as PNG; empty when the VM has none or it cannot be taken."""
    pieces: list[bytes] = []
    stream = connection.newStream()
    try:
        domain.screenshot(stream, 0)
        stream.recvAll(lambda _stream, data, _opaque: pieces.append(data), None)
        stream.finish()
    except libvirt.libvirtError:
        return b""
    return _as_png(b"".join(pieces))


def _as_png(picture: bytes) -> bytes:
    """QEMU gives PPM or PNG by its version. A large photograph of a desktop is made as small as evidence takes it."""
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415  (only drills need it)

    try:
        with Image.open(io.BytesIO(picture)) as image:
            shown = image.convert("RGB")
        while len(data := _saved(shown)) > SCREENSHOT_MAX:
            shown = shown.reduce(2)
    except (UnidentifiedImageError, OSError):
        return b""
    return data


def _saved(image: Image.Image) -> bytes:
    result = io.BytesIO()
    image.save(result, "PNG", optimize=True)
    return result.getvalue()


def is_blank(png: bytes) -> bool:
    """Whether a screen shows nothing: all but a few pixels (a cursor) have one colour."""
    if not png:
        return True
    from PIL import Image  # noqa: PLC0415  (only drills need it)

    with Image.open(io.BytesIO(png)) as image:
        grey = image.convert("L").histogram()
    return sum(grey) - max(grey) <= sum(grey) // 2000
