"""Volumes of libvirt's storage pools as places to restore to. Imports libvirt when the first is asked for."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from vmcellar.restore.targets import ImageFormat

_FILE_POOLS = frozenset({"dir", "fs", "netfs", "gluster"})
"""Types of pools whose volumes are files, and so may be qcow2 images."""


class LibvirtVolumes:
    """The pools of the libvirt at `uri`: see `destinations.Volumes`."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def find(self, pool: str, name: str, size: int, image_format: ImageFormat | None) -> str:
        """PermanentError with libvirt's reason when there is no such pool or it makes no such volume."""
        from vmcellar.sources.libvirt_connection import Connection  # noqa: PLC0415  (needs libvirt)

        connection = Connection(self._uri)
        try:
            kind = ET.fromstring(connection.pool_xml(pool)).get("type", "")  # noqa: S314  (libvirt's own output)
            path = connection.volume(pool, name, volume_xml(name, size, kind, image_format))
        finally:
            connection.close()
        return path if path.startswith("/") else f"rbd:{path}"


def volume_xml(name: str, size: int, kind: str, image_format: ImageFormat | None) -> str:
    """A new volume that takes its space as it is written, where its pool can do that."""
    volume = ET.Element("volume")
    ET.SubElement(volume, "name").text = name
    ET.SubElement(volume, "capacity", {"unit": "bytes"}).text = str(size)
    if kind in _FILE_POOLS:
        ET.SubElement(volume, "allocation", {"unit": "bytes"}).text = "0"
        ET.SubElement(ET.SubElement(volume, "target"), "format", {"type": image_format or "qcow2"})
    return ET.tostring(volume, encoding="unicode")
