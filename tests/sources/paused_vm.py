"""A real libvirt domain that runs no guest: it is started paused, and a test writes to its disks through QEMU itself.

So every byte on its disks is the test's, each change is exact, and a start takes a quarter of a second.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import libvirt
import libvirt_qemu

from lab import daemons
from lab.paths import give_to_qemu, vm_folder
from lab.waiting import wait_for

MIB = 1 << 20


class PausedVm:
    """One domain and the folder with its images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"vmcellar-src-{secrets.token_hex(4)}"
        self.scratch = folder / "s"
        self.connection = libvirt.open(daemons.URI)
        self.disks: dict[str, str] = {}
        self.extra = ""
        self.os_extra = ""

    @property
    def domain(self) -> libvirt.virDomain:
        """The domain, looked up anew."""
        return self.connection.lookupByName(self.name)

    def image(self, target: str) -> Path:
        """Where a disk's image lies."""
        return self.folder / f"{target}.img"

    def add_qcow2(self, target: str = "vda", size: int = 16 * MIB, *options: str) -> None:
        """An empty qcow2 disk."""
        self.make_qcow2(self.image(target), size, *options)
        self.disks[target] = self.disk_xml(target, "qcow2")

    def add_raw(self, target: str, size: int = 4 * MIB) -> None:
        """An empty raw disk."""
        with self.image(target).open("wb") as file:
            file.truncate(size)
        give_to_qemu(self.image(target))
        self.disks[target] = self.disk_xml(target, "raw")

    def make_qcow2(self, path: Path, size: int, *options: str) -> None:
        """Create an image that QEMU's user may use."""
        run("qemu-img", "create", "-f", "qcow2", *options, str(path), str(size))
        give_to_qemu(path)

    def disk_xml(self, target: str, form: str, inner: str = "", device: str = "disk") -> str:
        """The XML of a disk with this VM's image for `target`."""
        return (
            f"<disk type='file' device='{device}'><driver name='qemu' type='{form}' discard='unmap'/>"
            f"<source file='{self.image(target)}'/><target dev='{target}' bus='virtio'/>"
            f"<serial>S-{target}</serial>{inner}</disk>"
        )

    def xml(self) -> str:
        """The domain's definition."""
        return (
            f"<domain type='qemu'><name>{self.name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>"
            f"<os><type arch='x86_64' machine='pc'>hvm</type>{self.os_extra}</os><features><acpi/></features>"
            f"<devices>{''.join(self.disks.values())}{self.extra}</devices></domain>"
        )

    def start(self) -> None:
        """Define it if it is not, and start it paused."""
        try:
            domain = self.domain
        except libvirt.libvirtError:
            domain = self.connection.defineXML(self.xml())
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)

    def start_transient(self) -> None:
        """Start it paused without a definition that stays."""
        self.connection.createXML(self.xml(), libvirt.VIR_DOMAIN_START_PAUSED)

    def stop(self) -> None:
        """Stop it as a host shutdown does, by SIGTERM: bitmaps are stored."""
        self.domain.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)

    def kill(self) -> None:
        """`kill -9` QEMU, and wait until libvirt noticed."""
        os.kill(int(Path(f"/run/libvirt/qemu/{self.name}.pid").read_text()), signal.SIGKILL)
        wait_for(lambda: not self.domain.isActive(), f"{self.name} to be seen dead")

    def io(self, target: str, command: str) -> None:
        """Run a qemu-io command, such as "write -P 7 0 64k", on a disk of the running domain."""
        alias = f"virtio-disk{ord(target[-1]) - ord('a')}"
        order = f'qemu-io -d /machine/peripheral/{alias}/virtio-backend "{command}"'
        answer = libvirt_qemu.qemuMonitorCommand(self.domain, order, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)
        assert "rror" not in answer, answer

    def close(self) -> None:
        """Let go of the domain and its definition."""
        with contextlib.suppress(libvirt.libvirtError):
            self.domain.destroy()
        with contextlib.suppress(libvirt.libvirtError):
            self.domain.undefineFlags(
                libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
            )


@contextlib.contextmanager
def paused_vm() -> Iterator[PausedVm]:
    """A VM without disks yet; everything of it is gone at the end."""
    with vm_folder("src") as folder:
        vm = PausedVm(folder)
        try:
            yield vm
        finally:
            vm.close()


def run(*arguments: str) -> None:
    """Run a tool of QEMU; its error output is in the exception."""
    subprocess.run(arguments, check=True, capture_output=True)
