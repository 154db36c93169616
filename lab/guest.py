"""A laboratory guest: define, start, change, break and remove a real KVM or TCG virtual machine.

    with vm_folder() as folder, LabGuest(folder) as guest:
        guest.start()
        guest.write("vdb", offset=0, length=1 << 20, seed=7)
        guest.sync()

Names are unique, so many guests run at once. One thread per guest object.
"""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import libvirt

from lab import monitor
from lab.accel import accelerator
from lab.daemons import URI
from lab.disks import STANDARD_DISKS, DiskSpec, make_image
from lab.domain import Firmware, disk_element, domain_xml
from lab.image import guest_image
from lab.inside import GuestInside
from lab.paths import give_to_qemu, process_lives
from lab.shellcommand import LabError, call
from lab.waiting import wait_for

NAME_PREFIX = "lab-"
UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)


def sweep() -> list[str]:
    """Remove guests that a killed laboratory process left (their names carry its id), and return those names."""
    connection = libvirt.open(URI)
    swept = []
    for domain in connection.listAllDomains():
        name = domain.name()
        owner = name.removeprefix(NAME_PREFIX).split("-")[0]
        if name.startswith(NAME_PREFIX) and owner.isdigit() and not process_lives(int(owner)):
            _discard_domain(domain)
            swept.append(name)
    connection.close()
    return swept


def _discard_domain(domain: libvirt.virDomain) -> None:
    with contextlib.suppress(libvirt.libvirtError):  # it may be off, or gone, by now
        domain.destroy()
    with contextlib.suppress(libvirt.libvirtError):
        domain.undefineFlags(UNDEFINE)


class LabGuest(GuestInside):
    """A domain with its disk images in one folder; leaving the `with` block destroys and removes it.

    `disks` are made when the guest is defined; `images` maps a target to a ready image file to use instead.
    `memory` is in MiB; `uri` is the libvirt of another host (`lab.otherhost`), where `qemu_pid` and `run` do not work.
    With `firmware` it boots from its first disk (`lab.bootdisk`), else the lab's kernel directly.
    """

    def __init__(
        self,
        folder: Path,
        disks: Sequence[DiskSpec] = STANDARD_DISKS,
        *,
        images: dict[str, Path] | None = None,
        memory: int = 128,
        agent: bool = True,
        uri: str = URI,
        firmware: Firmware | None = None,
    ) -> None:
        self.uuid = str(uuid.uuid4())
        name = f"{NAME_PREFIX}{os.getpid()}-{self.uuid[:8]}"
        self.uri = uri
        self.connection = libvirt.open(uri)
        self.disks = {spec.target: spec for spec in disks}
        self.paths = {spec.target: folder / f"{name}-{spec.target}.{spec.format}" for spec in disks} | (images or {})
        self.folder = folder
        for target, spec in self.disks.items():
            if target not in (images or {}):
                make_image(spec, self.paths[target])
        xml = domain_xml(
            name=name,
            uuid=self.uuid,
            boot=firmware or guest_image(),
            accelerator=accelerator(),
            disks=[(spec, self.paths[target]) for target, spec in self.disks.items()],
            memory=memory,
            agent=agent,
        )
        self.connection.defineXML(xml)
        super().__init__(self.connection, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    # Life

    def start(self, *, paused: bool = False) -> None:
        """Start and wait until the guest answers. With `paused` no guest code runs: a running domain, quiet disks."""
        self.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)
        if not paused:
            self.wait_ready()

    def stop(self) -> None:
        """Shut down in order: file systems unmounted, QEMU ends by itself."""
        with contextlib.suppress(LabError):  # the channel ends before it can answer
            self.run("sync; umount /data; poweroff -f")
        self._wait_off()

    def destroy(self) -> None:
        """Pull the plug, in libvirt's way; harmless when the guest is off."""
        if self.domain.isActive():
            with contextlib.suppress(libvirt.libvirtError):
                self.domain.destroy()
        self._wait_off()

    def kill_qemu(self) -> None:
        """`kill -9` of this guest's QEMU, as a power loss; returns when libvirt has noticed."""
        os.kill(self.qemu_pid(), signal.SIGKILL)
        self._wait_off()

    def remove(self) -> None:
        """Destroy, undefine with all its checkpoint metadata; images stay in their folder."""
        self._reconnect_if_cut()
        self.destroy()
        _discard_domain(self.domain)
        self.connection.close()

    def _reconnect_if_cut(self) -> None:
        """Another test may have restarted libvirtd since: a guest that outlives that has a dead connection."""
        try:
            self.connection.getLibVersion()
        except libvirt.libvirtError:
            self.connection = libvirt.open(self.uri)
            self.domain = self.connection.lookupByName(self.name)

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Hold the virtual CPU still; what the guest had written stays as it is meanwhile."""
        running = self._runs_code()
        if running:
            self.domain.suspend()
        try:
            yield
        finally:
            if running and self.domain.isActive():
                self.domain.resume()

    def qemu_pid(self) -> int:
        """The process id of this guest's QEMU; LabError when it is not running."""
        try:
            pid = int(Path(f"/run/libvirt/qemu/{self.name}.pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError) as error:
            raise LabError(f"guest {self.name} has no running QEMU") from error
        if self.uuid.encode() not in command:
            raise LabError(f"process {pid} is not the QEMU of guest {self.name}")
        return pid

    def _wait_off(self) -> None:
        self.close_channel()
        wait_for(lambda: not self.domain.isActive(), f"guest {self.name} to be off", seconds=60)

    # Disk contents behind the guest's back: also on a paused guest, a few milliseconds each

    def poke(self, target: str, offset: int, length: int, seed: int) -> None:
        """Write `length` seeded bytes at `offset` of a disk that the guest itself does not use just then."""
        monitor.poke_many(self.domain, target, [(offset, monitor.seeded_bytes(length, seed))], self.folder)

    def poke_zero(self, target: str, offset: int, length: int) -> None:
        """Write zeroes at `offset` of a disk."""
        monitor.poke_zero(self.domain, target, offset, length)

    def poke_discard(self, target: str, offset: int, length: int) -> None:
        """Discard `length` bytes at `offset` of a disk."""
        monitor.poke_discard(self.domain, target, offset, length)

    # Hardware

    def add_disk(self, spec: DiskSpec, image: Path | None = None) -> None:
        """Add a disk, hot when the guest runs; `image` takes a ready image file instead of a new one."""
        path = image or self.folder / f"{self.name}-{spec.target}.{spec.format}"
        if image is None:
            make_image(spec, path)
        self.domain.attachDeviceFlags(ET.tostring(disk_element(spec, path), encoding="unicode"), self._scope())
        self.disks[spec.target], self.paths[spec.target] = spec, path
        if self._runs_code():
            self.check(f"until lab-device {spec.serial}; do usleep 50000; done")

    def remove_disk(self, target: str) -> None:
        """Take a disk out, hot when the guest runs (its guest must be awake to let it go); the image file stays."""
        disk = self._disk_xml(target)
        self.domain.detachDeviceFlags(ET.tostring(disk, encoding="unicode"), self._scope())
        wait_for(lambda: not self._has_disk(target), f"disk {target} to leave guest {self.name}", seconds=60)
        del self.disks[target], self.paths[target]

    def grow_disk(self, target: str, size: int) -> None:
        """Grow a disk to `size` bytes: through libvirt while the guest runs, with qemu-img while it is off."""
        if self.domain.isActive():
            self.domain.blockResize(target, size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
        else:
            call(["qemu-img", "resize", "-q", "-f", self.disks[target].format, self.paths[target], str(size)])
        self.disks[target] = replace(self.disks[target], size=size)

    def swap_image(self, target: str, image: Path) -> None:
        """Put another image file in the place of a disk's image, under the same path; the guest must be off."""
        if self.domain.isActive():
            raise LabError(f"guest {self.name} runs; stop it before its image {target} is swapped")
        image.rename(self.paths[target])
        give_to_qemu(self.paths[target])

    def _scope(self) -> int:
        active = libvirt.VIR_DOMAIN_AFFECT_LIVE if self.domain.isActive() else 0
        return int(active | libvirt.VIR_DOMAIN_AFFECT_CONFIG)

    def _runs_code(self) -> bool:
        return bool(self.domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING)

    def _has_disk(self, target: str) -> bool:
        return f"<target dev='{target}' " in self.domain.XMLDesc()

    def _disk_xml(self, target: str) -> ET.Element:
        disk = ET.fromstring(self.domain.XMLDesc()).find(f"devices/disk[target]/target[@dev='{target}']/..")
        if disk is None:
            raise LabError(f"guest {self.name} has no disk {target}")
        return disk
