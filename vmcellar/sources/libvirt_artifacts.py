"""What a restored VM needs beside its disks: its definition, NVRAM, TPM state, kernel and initrd (pitfall 18)."""

from __future__ import annotations

import io
import tarfile
import xml.etree.ElementTree as ET
from pathlib import Path

import libvirt

from vmcellar.sources.domain_files import own_files, path_in
from vmcellar.sources.libvirt_pool import HostFiles

DOMAIN_XML = "domain.xml"
TPM = "tpm.tar"

_TPM_STATE = Path("/var/lib/libvirt/swtpm")


def collect(domain: libvirt.virDomain, *, elsewhere: bool = False) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The artifacts by name, and a warning for each that exists but cannot be read.

    `domain.xml` has its secrets and is the persistent definition, or the live one when their disks differ (hot-added
    disks) or nothing persistent exists. `tpm.tar` holds the emulator's state folder. `kernel`, `initrd` and `dtb` are
    those of a direct boot, `loader` is firmware that the VM writes its variables into. With `elsewhere` the files are
    on another host, and are read through its storage pools.
    """
    live = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)
    found = {DOMAIN_XML: _definition(domain, live).encode()}
    warnings: list[str] = []
    there = HostFiles(domain.connect()) if elsewhere else None
    for name, path, form in _files(ET.fromstring(live)):  # noqa: S314
        try:
            if path is None:
                raise OSError(f"it is of the form {form}, which is not read")
            if there is not None:
                found[name] = there.tpm_state(path) if name == TPM else there.read(path)
            else:
                found[name] = _archive(path) if path.is_dir() else path.read_bytes()
        except OSError as error:
            warnings.append(f"{name} was not captured, the restored VM may not boot: {error}")
    return found, tuple(warnings)


def _definition(domain: libvirt.virDomain, live: str) -> str:
    if not domain.isPersistent():
        return live
    kept: str = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE)
    return kept if _disks(kept) == _disks(live) else live


def _disks(xml: str) -> set[tuple[str, str]]:
    found = set()
    for disk in ET.fromstring(xml).iterfind("devices/disk"):  # noqa: S314
        target, source = disk.find("target"), disk.find("source")
        path = "" if source is None else source.get("file") or source.get("dev") or source.get("name") or ""
        found.add(("" if target is None else target.get("dev", ""), path))
    return found


def _files(root: ET.Element) -> list[tuple[str, Path | None, str]]:
    """(artifact name, path, form) of all that the domain XML refers to; no path where its form is none that is read."""
    files: list[tuple[str, Path | None, str]] = []
    os = root.find("os")
    for name, element in own_files(os) if os is not None else ():
        path = path_in(element)
        files.append((name, Path(path) if path else None, element.get("type", "without a file")))
    if root.find("os/varstore") is not None:
        files.append(("varstore", None, "varstore"))
    if root.find("devices/tpm/backend[@type='emulator']") is not None:
        files.append((TPM, _TPM_STATE / (root.findtext("uuid") or ""), ""))
    return files


def _archive(folder: Path) -> bytes:
    """A tar of the folder's files, names relative to it, without owners and times of this host."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.name.startswith(".lock"):
                entry = tarfile.TarInfo(str(path.relative_to(folder)))
                data = path.read_bytes()
                entry.size, entry.mode = len(data), 0o600
                tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()
