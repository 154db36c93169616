"""Tags of VMs: words in the domain's metadata, in a namespace of ours.

`<metadata><vmcellar:tags xmlns:vmcellar="urn:vmcellar:tags">prod db</vmcellar:tags></metadata>`; libvirt keeps it with
the VM, so it moves, is copied and is restored with it. Source: libvirt's formatdomain, "General metadata".
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Collection

import libvirt

from vmcellar.sources.libvirt_connection import explain

NAMESPACE = "urn:vmcellar:tags"
_PREFIX = "vmcellar"


def read_tags(domain: libvirt.virDomain) -> frozenset[str]:
    """The VM's tags; none when it is gone meanwhile."""
    try:
        text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE)
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_NO_DOMAIN):
            return frozenset()
        raise explain(error, domain.name(), "reading its tags") from error
    return frozenset((ET.fromstring(text).text or "").split())  # noqa: S314


def write_tags(domain: libvirt.virDomain, tags: Collection[str]) -> None:
    """Give the VM these tags and no others, at once and for its next starts."""
    flags = libvirt.VIR_DOMAIN_AFFECT_CONFIG if domain.isPersistent() else 0
    flags |= libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0
    element = None
    if tags:
        made = ET.Element("tags")
        made.text = " ".join(sorted(tags))
        element = ET.tostring(made, encoding="unicode")
    try:
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, element, _PREFIX, NAMESPACE, flags)
    except libvirt.libvirtError as error:
        if element is None and error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return
        raise explain(error, domain.name(), "setting its tags") from error
