"""The storage pool of another host in which scratch files lie, and files of that host read through its libvirt.

Source: libvirt's storage API. A pool knows of files that others made only after a refresh.
"""

from __future__ import annotations

import contextlib
import io
import logging
import secrets
import tarfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt
from tenacity import Retrying, retry_if_exception_cause_type, stop_after_attempt, wait_fixed

from vmcellar.errors import PermanentError
from vmcellar.sources.base import ScratchPressure

log = logging.getLogger(__name__)

REFRESH_SECONDS = 10.0
"""A refresh opens every file of the pool; between two of them, QEMU's own count of what it wrote is taken."""

FILES_POOL = "vmcellar-files-"
"""What the names of the pools begin with that `opened` makes."""

_TPM_FOLDERS = ("tpm2", "tpm1.2")


def folder_of(connection: libvirt.virConnect, name: str) -> str:
    """The folder of a pool, which is started where it is off. PermanentError with what to type where it is missing."""
    try:
        pool = connection.storagePoolLookupByName(name)
        if not pool.isActive():
            pool.create()
        tree = ET.fromstring(pool.XMLDesc())  # noqa: S314
    except libvirt.libvirtError as error:
        there = f"virsh -c '{connection.getURI()}'"
        raise PermanentError(
            f"storage pool {name}: {error}",
            hint=f"QEMU's scratch files lie in it: `{there} pool-define-as {name} dir --target "
            f"/var/lib/libvirt/vmcellar && {there} pool-build {name} && {there} pool-start {name} && "
            f"{there} pool-autostart {name}`",
        ) from error
    path = tree.findtext("target/path") or ""
    if tree.get("type") not in ("dir", "fs", "netfs") or not path:
        raise PermanentError(
            f"storage pool {name} is of type {tree.get('type')}: scratch files need one of type dir",
            hint="set `libvirt: remote: scratch_pool:` to another pool",
        )
    return path


def free_bytes(connection: libvirt.virConnect, name: str) -> int:
    """What is free where a pool lies."""
    pool = connection.storagePoolLookupByName(name)
    pool.refresh()
    free: int = pool.info()[3]
    return free


def check_space(connection: libvirt.virConnect, name: str, vm: str, need: int) -> None:
    """PermanentError unless `need` bytes are free for what the guest overwrites."""
    free = free_bytes(connection, name)
    if free < need:
        raise PermanentError(
            f"{vm}: {free >> 20} MiB are free in storage pool {name}, {need >> 20} MiB are wanted: "
            "if it filled, the guest's own writes would fail",
            hint="free space there, or set `libvirt: remote: scratch_pool:` to a larger pool",
        )


class SpaceWatch:
    """How full a pool gets while one job of a domain writes to it. One thread at a time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._looked = -REFRESH_SECONDS
        self._room = 0

    def look(self, domain: libvirt.virDomain) -> ScratchPressure:
        """What the job's scratch files hold by QEMU's count, and what is free beside them; libvirtError."""
        used = int(domain.jobStats().get(libvirt.VIR_DOMAIN_JOB_DISK_TEMP_USED, 0))
        now = time.monotonic()
        if now - self._looked >= REFRESH_SECONDS:
            self._room = used + free_bytes(domain.connect(), self._name)
            self._looked = now
        return ScratchPressure(used, max(0, self._room - used))


def remove_files(connection: libvirt.virConnect, name: str, prefix: str) -> list[str]:
    """Remove the pool's files whose names begin so: those that libvirt left, as after a power loss. Their names."""
    pool = connection.storagePoolLookupByName(name)
    if not pool.isActive():
        pool.create()
    pool.refresh()
    found = [volume for volume in pool.listAllVolumes() if volume.name().startswith(prefix)]
    for volume in found:
        volume.delete()
    return [volume.name() for volume in found]


def qcow2_compat(connection: libvirt.virConnect, path: str) -> str:
    """The compatibility level of a qcow2 image ("0.10" is version 2); empty where no pool has it, or has not looked."""
    with contextlib.suppress(libvirt.libvirtError):
        xml = connection.storageVolLookupByPath(path).XMLDesc()
        return ET.fromstring(xml).findtext("target/compat") or ""  # noqa: S314
    return ""


class HostFiles:
    """Small files of the other host. OSError, as of a local file, says why one cannot be read."""

    def __init__(self, connection: libvirt.virConnect) -> None:
        self._connection = connection

    def read(self, path: Path) -> bytes:
        """A whole file. Tried again, as another process may take away the pool that it made and that is used here."""
        retrying = Retrying(
            retry=retry_if_exception_cause_type(libvirt.libvirtError),
            stop=stop_after_attempt(3),
            wait=wait_fixed(0.2),
            reraise=True,
        )
        return retrying(self._read, path)

    def _read(self, path: Path) -> bytes:
        with self._volumes(path.parent) as volumes:
            if path.name not in volumes:
                raise FileNotFoundError(f"{path} is not there")
            return self._download(volumes[path.name])

    def tpm_state(self, folder: Path) -> bytes:
        """A tar of the state of an emulated TPM, names relative to `folder`."""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for version in _TPM_FOLDERS:
                with contextlib.suppress(OSError), self._volumes(folder / version) as volumes:
                    for name, volume in sorted(volumes.items()):
                        if not name.startswith(".lock"):
                            _add(tar, f"{version}/{name}", self._download(volume))
            if not tar.getmembers():
                raise FileNotFoundError(f"no state of the TPM is to be had in {folder} through libvirt's storage pools")
        return out.getvalue()

    @contextmanager
    def _volumes(self, folder: Path) -> Iterator[dict[str, libvirt.virStorageVol]]:
        """The files of a folder, by a pool that is there, or by one that is made and goes again."""
        try:
            pool = self._pool_at(folder)
            made = pool is None
            if pool is None:
                pool = self._connection.storagePoolCreateXML(_pool_xml(folder))
            try:
                if not made:
                    pool.refresh()
                yield {volume.name(): volume for volume in pool.listAllVolumes()}
            finally:
                if made:
                    pool.destroy()  # libvirt forgets the folder; its files stay
        except libvirt.libvirtError as error:
            raise OSError(f"{folder} on the other host, through libvirt: {error}") from error

    def _pool_at(self, folder: Path) -> libvirt.virStoragePool | None:
        for pool in self._connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
            if ET.fromstring(pool.XMLDesc()).findtext("target/path") == str(folder):  # noqa: S314
                return pool
        return None

    def _download(self, volume: libvirt.virStorageVol) -> bytes:
        out = io.BytesIO()
        stream = self._connection.newStream()
        volume.download(stream, 0, 0)
        stream.recvAll(lambda _stream, data, _opaque: out.write(data), None)
        stream.finish()
        return out.getvalue()


def _pool_xml(folder: Path) -> str:
    pool = ET.Element("pool", type="dir")
    ET.SubElement(pool, "name").text = FILES_POOL + secrets.token_hex(6)
    ET.SubElement(ET.SubElement(pool, "target"), "path").text = str(folder)
    return ET.tostring(pool, encoding="unicode")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o600
    tar.addfile(entry, io.BytesIO(data))
