"""Restore a VM where it is: its disks become the point's by writing what differs, its NVRAM and TPM state come back.

Nothing of the VM is lost by it. A VM that runs is backed up first (the safety point, `--stop`); each image file that no
safety point holds is copied beside itself as NAME.before-TIME (a reflink where the file system can), durably. A kill
leaves at worst disks that are half (`unfinished`), which the same command finishes; the copies stay until somebody
removes them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import libvirt

from vmcellar.errors import PermanentError, TransientError
from vmcellar.folders import sync_folder
from vmcellar.progress import CancelToken, ProgressSink
from vmcellar.restore import rbd_images
from vmcellar.restore.define import TPM_STATE, place_tpm_state
from vmcellar.restore.destinations import Destination, find_destination
from vmcellar.restore.domain_xml import firmware_files
from vmcellar.restore.in_use import LibvirtMachines
from vmcellar.restore.noted import refuse_noted
from vmcellar.restore.onto import OntoReport, check_size, restore_onto
from vmcellar.restore.plan import survey
from vmcellar.restore.restore import DOMAIN_XML
from vmcellar.restore.targets import ImageFormat
from vmcellar.restore.thaw import refuse_asleep
from vmcellar.restore.volumes import LibvirtVolumes
from vmcellar.sources.domain_files import NVRAM
from vmcellar.sources.libvirt_connection import Connection, explain
from vmcellar.sources.libvirt_uri import refuse_other_host

if TYPE_CHECKING:
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository

TPM = "tpm.tar"
_SHUTDOWN_SECONDS = 120.0
_POLL_SECONDS = 0.2
_SECRETS = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE


@dataclass(frozen=True, slots=True)
class Wishes:
    """`stop` a VM that runs, after a backup; `keep` copies of what no backup holds; bring back `definition`."""

    stop: bool = False
    keep: bool = True
    definition: bool = False


@dataclass(frozen=True, slots=True)
class InPlaceReport:
    """What was done. `safety` is the point that was taken first, `kept` what the old state was copied or moved to."""

    vm: str
    onto: OntoReport
    safety: str
    kept: tuple[Path, ...]
    brought_back: tuple[str, ...]
    left: tuple[str, ...]


class InPlace:
    """One restore in place. Call `prepare`, then `run` while no backup of the VM can begin.

    `safety` is the point that `prepare` took, for a VM that ran: its newest one, so no prune drops it before the caller
    has pinned it.
    """

    def __init__(
        self, repository: Repository, point: RestorePoint, connection: Connection, state: Path, wishes: Wishes
    ) -> None:
        refuse_other_host(connection.uri, f"restoring {point.vm} in place")
        self._repository = repository
        self._point = point
        self._connection = connection
        self._state = state
        self._wishes = wishes
        self.safety: RestorePoint | None = None
        self._suffix = time.strftime(".before-%Y%m%dT%H%M%SZ", time.gmtime())
        self._domain = connection.domain(point.vm)
        self._xml: str = self._domain.XMLDesc(_SECRETS)
        self._check_same_vm()
        self.disks = self._find_disks()

    def prepare(self, back_up: Callable[[], str]) -> None:
        """Have the VM off and its present state safe. `back_up` takes the safety point and gives its id.

        PermanentError when the VM runs and may not be stopped, or when the old state could not be kept; ArchivedError
        when the point must be thawed first: the VM runs on then.
        """
        refuse_asleep(self._repository, self._point, list(self.disks))
        if not self._domain.isActive():
            self._refuse_what_cannot_be_kept("is off, so it cannot be backed up first")
            return
        if not self._wishes.stop:
            raise PermanentError(
                f"{self._point.vm} is running",
                hint="shut it down, or give --stop: it is then backed up, shut down, and restored; nothing was written",
            )
        self._refuse_what_would_fail()
        self.safety = self._present(back_up)
        self._refuse_what_cannot_be_kept(f"was backed up, but not all of it: point {self.safety.id}")
        self._shut_down()

    def _present(self, back_up: Callable[[], str]) -> RestorePoint:
        """A point of an instant from now on: a backup may first finish a run that died, of hours ago (`recover`)."""
        asked = time.time()
        for _ in range(2):
            found = self._repository.point(back_up())
            if found.time >= asked:
                return found
        raise PermanentError(
            f"{self._point.vm}: the backup before the restore gave point {found.id}, which is older than this command",
            hint="is the host's clock being set? Type the command again; nothing was written",
        )

    def _refuse_what_would_fail(self) -> None:
        """What `restore_onto` would find once the VM is off: damage in the point, disks of another size. And disks that
        the running VM has elsewhere than its definition says, which the safety point would not hold.
        """
        survey(self._repository, self._point, list(self.disks), best_effort=False, cancel=CancelToken())
        refuse_noted(self._repository, self._point, list(self.disks), CancelToken())
        try:
            now = _sources(self._domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE))
            sizes = {target: int(self._domain.blockInfo(target)[0]) for target in self.disks if target in now}
        except libvirt.libvirtError as error:
            raise explain(error, self._point.vm, "looking at its disks") from error
        defined = _sources(self._xml)
        for target, onto in self.disks.items():
            if now.get(target) != defined[target]:
                raise PermanentError(
                    f"{self._point.vm} runs with disk {target} on {now.get(target) or 'nothing'}, but its definition "
                    f"names {defined[target]}",
                    hint="shut it down and see which is right (`virsh dumpxml --inactive`); nothing was written",
                )
            check_size(self._point.disk(target), onto, sizes[target])

    def run(self, progress: ProgressSink, cancel: CancelToken) -> InPlaceReport:
        """Keep, overwrite, bring back; errors as those of `restore_onto`."""
        kept = self._keep_disks(cancel) if self._wishes.keep else []
        machines = LibvirtMachines(self._connection.domains())
        onto = restore_onto(self._repository, self._point, self.disks, self._state, machines, progress, cancel)
        brought_back: list[str] = []
        kept += self._bring_back_firmware(brought_back)
        if self._wishes.definition:
            self._connection.define(self._definition(), self._point.vm)
            brought_back.append("definition")
        left = tuple(sorted({target for target, _ in _disks(self._xml)} - set(self.disks)))
        safety = self.safety.id if self.safety else ""
        return InPlaceReport(self._point.vm, onto, safety, tuple(kept), tuple(brought_back), left)

    def _check_same_vm(self) -> None:
        if not self._domain.isPersistent():
            raise PermanentError(
                f"{self._point.vm} is transient: libvirt forgets it as soon as it is off",
                hint="restore it with --define NAME, or its disks with --onto; nothing was written",
            )
        if self._domain.UUIDString() != self._point.vm_uuid:
            raise PermanentError(
                f"the VM {self._point.vm} here is another one ({self._domain.UUIDString()}) than that of point "
                f"{self._point.id} ({self._point.vm_uuid})",
                hint="restore it beside that one with --define NAME, or a disk with --onto",
            )
        if self._wishes.definition and _sources(self._definition()) != _sources(self._xml):
            raise PermanentError(
                f"{self._point.vm}: its disks lie elsewhere now than when the point was taken",
                hint="restore without --definition, or as a new VM with --define NAME; nothing was written",
            )

    def _definition(self) -> str:
        """The domain XML of the point."""
        artifact = self._point.artifact(DOMAIN_XML)
        if artifact is None:
            raise PermanentError(f"point {self._point.id} holds no domain XML", hint="restore without --definition")
        return self._repository.artifact(artifact).decode()

    def _find_disks(self) -> dict[str, Destination]:
        volumes = LibvirtVolumes(self._connection.uri)
        here = dict(_disks(self._xml))
        found = {}
        _refuse_firmware(self._point, self._xml)
        for record in self._point.disks:
            words = _words(here[record.target]) if record.target in here else ""
            if not words:
                raise PermanentError(
                    f"{self._point.vm} has no disk {record.target} now that can be written",
                    hint="attach one, or restore with --to DIR or --define NAME; nothing was written",
                )
            monitors = [host.get("name", "") for host in here[record.target].iterfind("source[@protocol='rbd']/host")]
            if monitors:
                pool, _, image = words.removeprefix("rbd:").partition("/")
                rbd_images.refuse_other_cluster(pool, image, monitors)
            _refuse_special(self._point.vm, record.target, here[record.target])
            image_format = _format(here[record.target])
            found[record.target] = find_destination(words, record.size, image_format, volumes)
        return found

    def _not_backed_up(self) -> list[Destination]:
        """The disks that the safety point does not hold: all without one, else those that a policy leaves out."""
        held = {disk.target for disk in self.safety.disks} if self.safety else set()
        return [disk for target, disk in self.disks.items() if target not in held]

    def _refuse_what_cannot_be_kept(self, why: str) -> None:
        others = [disk.name for disk in self._not_backed_up() if disk.kind != "file"]
        if others and self._wishes.keep:
            raise PermanentError(
                f"{self._point.vm} {why}, and {', '.join(others)} cannot be copied",
                hint="have it run, with a job that backs up all of its disks, and give --stop; or give --no-keep to "
                "overwrite what is there; nothing was written",
            )

    def _shut_down(self) -> None:
        """As its power button does; by force when the guest does not follow. The safety point holds what it had."""
        try:
            limit = time.monotonic() + (_SHUTDOWN_SECONDS if self._press_button() else 0.0)
            while self._domain.isActive() and time.monotonic() < limit:
                time.sleep(_POLL_SECONDS)
            if self._domain.isActive():
                self._domain.destroy()
        except libvirt.libvirtError as error:
            if self._domain.isActive():
                raise explain(error, self._point.vm, "shutting it down") from error

    def _press_button(self) -> bool:
        """Whether the guest may follow: a paused one cannot, nor one that has just gone off."""
        if self._domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
            return False
        self._domain.shutdown()
        return True

    def _keep_disks(self, cancel: CancelToken) -> list[Path]:
        """Copy each image that no backup holds, one too that an earlier restore left half: it may be whole by now."""
        kept = []
        for disk in self._not_backed_up():
            cancel.check()
            if disk.path is not None:
                kept.append(disk.path.with_name(disk.path.name + self._suffix))
                _copy(disk.path, kept[-1])
        return kept

    def _bring_back_firmware(self, brought_back: list[str]) -> list[Path]:
        kept = []
        artifacts = {artifact.name: artifact for artifact in self._point.artifacts}
        for name, path in firmware_files(ET.fromstring(self._xml)).items():  # noqa: S314  (libvirt's own output)
            if name in artifacts and path is not None:
                kept += _replace_file(path, self._repository.artifact(artifacts[name]), self._suffix)
                brought_back.append("NVRAM" if name == NVRAM else "firmware")
        if TPM in artifacts:
            kept += self._replace_tpm(self._repository.artifact(artifacts[TPM]))
            brought_back.append("TPM state")
        return kept

    def _replace_tpm(self, archive: bytes) -> list[Path]:
        folder = TPM_STATE / self._domain.UUIDString()
        new = folder.with_name(f"{folder.name}.new{self._suffix}")
        with tempfile.NamedTemporaryFile(suffix=".tar") as file:
            file.write(archive)
            file.flush()
            place_tpm_state(Path(file.name), new)
        if not folder.exists():
            new.rename(folder)
            return []
        before = folder.with_name(folder.name + self._suffix)
        folder.rename(before)
        new.rename(folder)
        return [before]


def _disks(xml: str) -> list[tuple[str, ET.Element]]:
    """(target, element) of each disk that is not removable."""
    found = []
    for element in ET.fromstring(xml).iterfind("devices/disk"):  # noqa: S314  (libvirt's own output)
        target = element.find("target")
        if target is not None and element.get("device", "disk") == "disk":
            found.append((target.get("dev", ""), element))
    return found


def _sources(xml: str) -> dict[str, str]:
    return {target: _words(element) for target, element in _disks(xml)}


def _words(element: ET.Element) -> str:
    """A disk's source in the words of `destinations`; empty for what has none."""
    source = element.find("source")
    if source is None:
        return ""
    if source.get("protocol") == "rbd":
        return f"rbd:{source.get('name', '')}"
    if source.get("pool"):
        return f"vol:{source.get('pool')}/{source.get('volume')}"
    return source.get("file") or source.get("dev") or ""


def _refuse_firmware(point: RestorePoint, xml: str) -> None:
    held = {artifact.name for artifact in point.artifacts}
    for name, path in firmware_files(ET.fromstring(xml)).items():  # noqa: S314  (libvirt's own output)
        if name in held and path is None:
            raise PermanentError(
                f"{point.vm}: its {name} is no file: it cannot be put back in place",
                hint="restore with --to DIR or --define NAME; nothing was written",
            )


def _refuse_special(vm: str, target: str, element: ET.Element) -> None:
    """What the guest sees of such a disk does not begin at the first byte of its file or device."""
    for path, what in (
        ("encryption", "is encrypted by QEMU"),
        ("source/encryption", "is encrypted by QEMU"),
        ("source/slices", "is a slice of a larger file or device"),
    ):
        if element.find(path) is not None:
            raise PermanentError(
                f"{vm}: disk {target} {what}: it cannot be overwritten in place",
                hint="restore its bytes with --to DIR, and write them through QEMU; nothing was written",
            )


def _format(element: ET.Element) -> ImageFormat:
    driver = element.find("driver")
    return "qcow2" if driver is not None and driver.get("type") == "qcow2" else "raw"


def _copy(path: Path, to: Path) -> None:
    """A copy with owner and mode, sparse, sharing the blocks where the file system can; none when it fails."""
    command = ["cp", "--reflink=auto", "--sparse=always", "--preserve=mode,ownership,timestamps", "--"]
    done = subprocess.run([*command, str(path), str(to)], capture_output=True, text=True, check=False)
    if done.returncode:
        to.unlink(missing_ok=True)
        raise PermanentError(
            f"{path} could not be kept as {to.name}: {done.stderr.strip()}",
            hint="make room, or give --no-keep to overwrite what is there; nothing was written to it",
        )
    _make_durable(to)


def _make_durable(path: Path) -> None:
    """File and name, before anything takes the place of what it was copied from."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    sync_folder(path.parent)


def _replace_file(path: Path, data: bytes, suffix: str) -> list[Path]:
    """Put a file in the place of another, which is kept; owner and mode stay those of the old one."""
    new, before = path.with_name(f".{path.name}.new"), path.with_name(path.name + suffix)
    try:
        new.write_bytes(data)
        if not path.exists():
            new.chmod(0o600)
            _make_durable(new)
            new.rename(path)
            return []
        status = path.stat()
        os.chown(new, status.st_uid, status.st_gid)
        new.chmod(status.st_mode & 0o777)
        shutil.copy2(path, before)
        os.chown(before, status.st_uid, status.st_gid)
        for file in (new, before):
            _make_durable(file)
        new.rename(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise TransientError(f"{path}: {error.strerror}", hint="type the same command again") from error
    return [before]
