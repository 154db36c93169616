"""Checkpoints of ours on a domain: names, lost metadata, broken bitmaps, removal.

A name is `vmcellar-<first 8 of the repository id>-<uuid>`: never used twice (pitfall 3) and of one repository only
(pitfall 8). The description names the run. Source: libvirt's formatcheckpoint and the virDomainCheckpoint API.
"""

from __future__ import annotations

import logging
import re
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Collection, Sequence

import libvirt

from vmcellar.sources.base import CheckpointRecord, Reconciled
from vmcellar.sources.libvirt_connection import BusyError, explain

log = logging.getLogger(__name__)

BROKEN = "bitmap broken or missing (QEMU was killed, or the image is another one)"
NOT_IN_PARENT = "no bitmap: the parent checkpoint does not cover this disk"
LOST = "the parent's checkpoint is gone from libvirt and cannot be defined again"

_NO_DOMAIN = libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN
_REDEFINE = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE | libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE
_RUN = re.compile(r"^vmcellar run (\S+)$")


def prefix(repository_id: str) -> str:
    """What the names of a repository's checkpoints begin with."""
    return f"vmcellar-{repository_id[:8]}-"


def new_name(repository_id: str) -> str:
    """A name that was never used before."""
    return prefix(repository_id) + str(uuid.uuid4())


def checkpoint_xml(name: str, run_id: str, tracked: Sequence[str], others: Sequence[str]) -> str:
    """The XML that asks for one checkpoint of the disks `tracked`, naming all `others` as not in it."""
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "description").text = f"vmcellar run {run_id}"
    disks = ET.SubElement(root, "disks")
    for target in tracked:
        ET.SubElement(disks, "disk", name=target, checkpoint="bitmap")
    for target in others:
        ET.SubElement(disks, "disk", name=target, checkpoint="no")
    return ET.tostring(root, encoding="unicode")


def own(domain: libvirt.virDomain, repository_id: str) -> dict[str, str]:
    """This repository's checkpoints on the domain as libvirt knows them: name -> run id, parents first."""
    found = domain.listAllCheckpoints(libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL)
    mine = [c for c in found if c.getName().startswith(prefix(repository_id))]
    return {c.getName(): _run_of(c.getXMLDesc(_NO_DOMAIN)) for c in mine}


def current_xml(domain: libvirt.virDomain, name: str) -> str:
    """A checkpoint's XML as a restore point keeps it: without the domain, which the point holds anyway."""
    xml: str = domain.checkpointLookupByName(name).getXMLDesc(_NO_DOMAIN)
    return xml


def restore_metadata(domain: libvirt.virDomain, chain: Sequence[CheckpointRecord]) -> None:
    """Define again what libvirt lost of `chain` (oldest first), each below the newest older one that libvirt has.

    The order is that of the chain, not of names or times (pitfall 7). What no longer has a sound bitmap is left out:
    only `parent_problems` judges the parent.
    """
    known = {c.getName() for c in domain.listAllCheckpoints()}
    above: str | None = None
    for record in chain:
        if record.name not in known and not _redefine(domain, record, above):
            continue
        above = record.name


def parent_problems(domain: libvirt.virDomain, name: str, targets: Sequence[str]) -> dict[str, str]:
    """For each of `targets` whose bitmap in checkpoint `name` cannot be used: why.

    libvirt gives the size of a sound bitmap only, so a missing size tells of a broken one, disk by disk and without a
    trial.
    """
    try:
        flags = _NO_DOMAIN | libvirt.VIR_DOMAIN_CHECKPOINT_XML_SIZE
        xml = domain.checkpointLookupByName(name).getXMLDesc(flags)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT:
            raise
        return dict.fromkeys(targets, LOST)
    sound: dict[str, bool] = {}
    for disk in ET.fromstring(xml).iterfind("disks/disk"):  # noqa: S314
        if disk.get("checkpoint") == "bitmap":
            sound[disk.get("name", "")] = disk.get("size") is not None
    problems = {target: NOT_IN_PARENT if target not in sound else BROKEN for target in targets}
    return {target: problem for target, problem in problems.items() if not sound.get(target)}


def delete(domain: libvirt.virDomain, name: str) -> None:
    """Remove a checkpoint and its bitmaps; only its metadata where a bitmap is broken (pitfall 5)."""
    checkpoint = domain.checkpointLookupByName(name)
    try:
        checkpoint.delete(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT):
            raise explain(error, domain.name(), f"removing checkpoint {name}") from error
        log.info("%s: checkpoint %s has a broken bitmap: removing its metadata only", domain.name(), name)
        checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def trim(
    domain: libvirt.virDomain, repository_id: str, kept: Collection[str], live_runs: Collection[str]
) -> list[Reconciled]:
    """Remove this repository's checkpoints but `kept` and those of `live_runs`.

    The domain must be active and without a job. One that cannot be removed now stays for the next time.
    """
    cleared: list[Reconciled] = []
    for name, run_id in own(domain, repository_id).items():
        if name in kept or run_id in live_runs:
            continue
        try:
            delete(domain, name)
        except BusyError as error:
            log.info("%s: checkpoint %s stays for now: %s", domain.name(), name, error)
            continue
        cleared.append(Reconciled("checkpoint-removed", run_id, f"{name}: no later backup is measured against it"))
    return cleared


def _run_of(xml: str) -> str:
    match = _RUN.match(ET.fromstring(xml).findtext("description") or "")  # noqa: S314
    return match.group(1) if match else ""


def _redefine(domain: libvirt.virDomain, record: CheckpointRecord, above: str | None) -> bool:
    try:
        domain.checkpointCreateXML(_below(record.xml, above), _REDEFINE)
    except libvirt.libvirtError as error:
        log.warning("%s: checkpoint %s cannot be defined again: %s", domain.name(), record.name, error)
        return False
    return True


def _below(xml: str, above: str | None) -> str:
    """`xml` with `above` as parent: the one it was created under may be gone, or not be defined yet."""
    root = ET.fromstring(xml)  # noqa: S314
    for parent in root.findall("parent"):
        root.remove(parent)
    if above is not None:
        ET.SubElement(ET.SubElement(root, "parent"), "name").text = above
    return ET.tostring(root, encoding="unicode")
