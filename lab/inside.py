"""A guest seen from inside: commands, disk contents, the guest agent. Works on any domain that boots the lab's image.

Writes carry a seed, so the same call makes the same bytes everywhere; raw writes bypass the guest's page cache and are
complete when the call returns. One thread per object.
"""

from __future__ import annotations

import json
import shlex
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from lab.channel import ShellChannel
from lab.domain import AGENT_CHANNEL, SHELL_CHANNEL
from lab.monitor import seeded_bytes
from lab.shellcommand import LabError
from lab.waiting import wait_for

ZEROES = "dd if=/dev/zero of=$(lab-device {serial}) bs=4096 seek={first} count={count} oflag=direct conv=notrunc"


class GuestInside:
    """Commands in one running domain, by name; open it on a restored domain to look into that."""

    def __init__(self, connection: libvirt.virConnect, name: str) -> None:
        self.name = name
        self.domain = connection.lookupByName(name)
        self._channel: ShellChannel | None = None

    def wait_ready(self, seconds: float = 90) -> None:
        """Wait until commands run inside the guest and its agent, when it has one, answers."""
        self.run("true", seconds=seconds)
        if self.has_agent:
            self.wait_agent(seconds)

    # Commands inside

    def run(self, script: str, *, data: bytes = b"", seconds: float = 60) -> tuple[int, str]:
        """Run a shell script inside; (exit code, output). Works without the agent and while file systems are frozen."""
        if data:
            return self._shell().run(script, data=data, seconds=seconds)
        return self._shell().run(f"{{ {script}\n}} </dev/null", seconds=seconds)

    def check(self, script: str, *, data: bytes = b"", seconds: float = 60) -> str:
        """Run a shell script inside and return its output; LabError when it fails."""
        code, output = self.run(script, data=data, seconds=seconds)
        if code != 0:
            raise LabError(f"in guest {self.name}: {script} ended with {code}: {output.strip()}")
        return output

    def _shell(self) -> ShellChannel:
        if self._channel is None:
            self._channel = ShellChannel(self._channel_path(SHELL_CHANNEL))
        return self._channel

    def close_channel(self) -> None:
        """Let the channel go; the next command connects anew."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _channel_path(self, name: str) -> Path:
        source = ET.fromstring(self.domain.XMLDesc()).find(f"devices/channel[target]/target[@name='{name}']/../source")
        if source is None:
            raise LabError(f"guest {self.name} has no channel {name}; is it running?")
        return Path(source.attrib["path"])

    # The guest agent

    @property
    def has_agent(self) -> bool:
        """Whether the domain has the agent's channel at all."""
        return AGENT_CHANNEL in self.domain.XMLDesc()

    def agent(self, command: str, *, seconds: int = 10, **arguments: Any) -> Any:
        """Send one command to the guest agent through libvirt and return its answer; libvirtError when it does not."""
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        return json.loads(libvirt_qemu.qemuAgentCommand(self.domain, json.dumps(request), seconds, 0))["return"]

    def agent_answers(self) -> bool:
        """Whether the guest agent answers within two seconds."""
        try:
            self.agent("guest-ping", seconds=2)
        except libvirt.libvirtError:
            return False
        return True

    def wait_agent(self, seconds: float = 60) -> None:
        """Wait until the guest agent answers."""
        wait_for(self.agent_answers, f"the agent of guest {self.name}", seconds=seconds)

    def agent_stop(self) -> None:
        """End the agent, and keep it ended."""
        self.check("touch /run/no-agent; killall qemu-ga; while pidof qemu-ga; do usleep 50000; done")

    def agent_start(self) -> None:
        """Start the agent again, or let a hanging one go on; returns when it answers."""
        self.check("rm -f /run/no-agent; killall -CONT qemu-ga || true")
        self.wait_agent()

    def agent_hang(self) -> None:
        """Stop the agent's process in its tracks: its channel stays open and nothing answers."""
        self.check("killall -STOP qemu-ga")

    # Disk contents

    def write(self, target: str, offset: int, length: int, seed: int) -> None:
        """Write `length` seeded bytes at `offset` of an unmounted disk; both multiples of 4096 bytes."""
        block = _block(length)
        script = f"dd of=$(lab-device lab-{target}) bs={block} count={length // block}"
        script += f" seek={offset} iflag=fullblock oflag=direct,seek_bytes conv=notrunc"
        self.check(script, data=seeded_bytes(length, seed))

    def zero(self, target: str, offset: int, length: int) -> None:
        """Write zeroes as data at `offset` of a raw disk; both multiples of 4096 bytes."""
        self.check(ZEROES.format(serial=f"lab-{target}", first=offset // 4096, count=length // 4096))

    def discard(self, target: str, offset: int, length: int) -> None:
        """Discard a range of a raw disk; both multiples of 4096 bytes. QEMU's image reads zero there afterwards."""
        self.check(f"blkdiscard -o {offset} -l {length} $(lab-device lab-{target})")

    def fill(self, name: str, length: int, seed: int) -> None:
        """Write the file /data/NAME with `length` seeded bytes, a multiple of 4096, and sync."""
        block = _block(length)
        path = shlex.quote(f"/data/{name}")
        script = f"dd of={path} bs={block} count={length // block} iflag=fullblock && sync"
        self.check(script, data=seeded_bytes(length, seed))

    def delete(self, name: str) -> None:
        """Remove the file /data/NAME and sync."""
        self.check(f"rm {shlex.quote(f'/data/{name}')} && sync")

    def fstrim(self) -> None:
        """Discard all that is free in the file system on /data."""
        self.check("fstrim /data")

    def sync(self) -> None:
        """Make everything that the guest's programs wrote reach its disks."""
        self.check("sync")

    def digest(self, path: str) -> str:
        """SHA-256 in hex of a file inside the guest."""
        return self.check(f"sha256sum {shlex.quote(path)}").split()[0]

    def start_writer(self, target: str) -> None:
        """Begin an endless loop of 64 KiB random writes all over a raw disk: a busy guest for live backups."""
        device = f"$(lab-device lab-{target})"
        loop = (
            "size=$(blockdev --getsize64 $device); while [ -e /run/writer ]; do "
            "place=$(( ($RANDOM * 32768 + $RANDOM) % (size / 65536) )); "
            "dd if=/dev/urandom of=$device bs=65536 count=1 seek=$place oflag=direct conv=notrunc; done"
        )
        self.check(f"device={device}; touch /run/writer; ( {loop} ) </dev/null >/dev/null 2>&1 &")

    def stop_writer(self) -> None:
        """End the writer loop; its last write is complete when this returns."""
        self.check("rm -f /run/writer; while pidof dd >/dev/null; do usleep 20000; done; sync")


def _block(length: int) -> int:
    """The largest power of two up to 1 MiB that divides `length`."""
    return min(length & -length, 1 << 20)
