"""A disk with a small operating system's files on ext4, changed from outside as its guest would change it.

The model is a raw file that debugfs works on; what differs since the last time is written into the guest's disk through
QEMU, in the blocks that differ and no others. So the change tracker sees what it would see of the guest: a file that is
renamed changes its folders' blocks alone. Source: debugfs(8).
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from lab import monitor
from lab.disks import MIB, DiskSpec
from lab.guest import LabGuest
from lab.paths import give_to_qemu
from lab.shellcommand import call

START = MIB
"""Where the partition begins."""
_BLOCK = 4096


class SystemDisk:
    """`model` is what the disk of a guest is to hold; `write` and its like change the model, `push` the guest."""

    def __init__(self, folder: Path, size: int, tree: Path) -> None:
        """An MBR disk of `size` bytes with one partition, ext4, filled from `tree`."""
        self.spec = DiskSpec("vda", size)
        self.model, self.image = folder / "model.raw", folder / "system.qcow2"
        self._was = folder / "was.raw"
        with self.model.open("wb") as file:
            file.truncate(size)
        table = f"label: dos\nstart={START // 512}, type=83\n"
        subprocess.run(["/sbin/sfdisk", "--quiet", self.model], input=table, text=True, check=True)
        options = f"offset={START},lazy_itable_init=0,lazy_journal_init=0"
        call(
            [
                "/sbin/mke2fs",
                "-q",
                "-F",
                "-t",
                "ext4",
                "-b",
                "4096",
                "-d",
                tree,
                "-E",
                options,
                self.model,
                f"{(size - START) >> 12}",
            ]
        )
        self._note()
        call(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", self.model, self.image])
        give_to_qemu(self.image)

    def debugfs(self, *commands: str) -> str:
        """Run commands of debugfs on the model; what they print."""
        return debugfs(self.model, *commands)

    def push(self, guest: LabGuest) -> int:
        """Write what differs into the guest's disk; how many bytes that were."""
        writes: list[tuple[int, bytes]] = []
        with self.model.open("rb") as now, self._was.open("rb") as was:
            for offset in range(0, self.spec.size, MIB):
                new, old = now.read(MIB), was.read(MIB)
                if new != old:
                    _add_differing(writes, offset, new, old)
        monitor.poke_many(guest.domain, self.spec.target, writes, guest.folder)
        self._note()
        return sum(len(data) for _, data in writes)

    def _note(self) -> None:
        call(["cp", "--sparse=always", self.model, self._was])


def _add_differing(writes: list[tuple[int, bytes]], offset: int, new: bytes, old: bytes) -> None:
    for at in range(0, len(new), _BLOCK):
        block = new[at : at + _BLOCK]
        if block == old[at : at + _BLOCK]:
            continue
        if writes and writes[-1][0] + len(writes[-1][1]) == offset + at:
            writes[-1] = (writes[-1][0], writes[-1][1] + block)
        else:
            writes.append((offset + at, block))


def debugfs(image: Path, *commands: str) -> str:
    """What debugfs prints of a raw image of such a disk; writes only what a command writes."""
    device = f"{image}?offset={START}"
    done = subprocess.run(
        ["/sbin/debugfs", "-w", "-f", "-", device],
        input="\n".join(commands),
        text=True,
        capture_output=True,
        check=True,
    )
    return done.stdout


def content(image: Path, path: str, to: Path) -> bytes:
    """The bytes of one file of such a disk."""
    debugfs(image, f'dump "{path}" {to}')
    data = to.read_bytes()
    to.unlink()
    return data
