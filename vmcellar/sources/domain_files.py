"""Which files a domain's firmware and direct boot are, in every form that libvirt writes. Pure text work, no libvirt.

Source: libvirt's "Domain XML format", operating system booting.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

NVRAM = "nvram"
LOADER = "loader"
"""The firmware itself, where the VM writes its variables into the same file."""
BOOT_FILES = (NVRAM, LOADER, "kernel", "initrd", "dtb")
"""Elements of `os` that name a file of the VM's own, and the artifacts of a restore point that hold it."""


def own_files(os: ET.Element) -> list[tuple[str, ET.Element]]:
    """(name, element) of each of BOOT_FILES that the domain has; firmware that all VMs share is none of them."""
    found = [(name, element) for name in BOOT_FILES for element in os.findall(name)]
    return [(name, element) for name, element in found if name != LOADER or _is_written(os, element)]


def _is_written(os: ET.Element, loader: ET.Element) -> bool:
    """Whether the VM writes to its loader: one that does not say is written where nothing else holds variables."""
    if loader.get("type") != "pflash" or loader.get("stateless") == "yes":
        return False
    return loader.get("readonly", "yes" if os.find(NVRAM) is not None else "no") == "no"


def path_in(element: ET.Element) -> str:
    """The file or device that an element names, as its text or its `source` (libvirt 8.5); empty for another form."""
    source = element.find("source")
    named = "" if source is None else source.get("file") or source.get("dev") or ""
    return (element.text or "").strip() or named
