"""A laboratory guest: define, start, change, break and remove a real KVM or TCG virtual machine.

    with vm_folder() as folder, LabGuest(folder) as guest:
        guest.start()
        guest.write("vdb", offset=0, length=1 << 20, seed=7)
        guest.sync()

Names are unique, so many guests run at once. One thread per guest object.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import libvirt
import libvirt_qemu

from lab.accel import accelerator
from lab.channel import ShellChannel
from lab.daemons import URI
from lab.disks import STANDARD_DISKS, DiskSpec, make_image
from lab.domain import SHELL_CHANNEL, disk_element, domain_xml
from lab.image import guest_image
from lab.shellcommand import LabError, call
from lab.waiting import wait_for

LIVE_AND_CONFIG = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG


class LabGuest:
    """A domain with its disk images in one folder; leaving the `with` block destroys and removes it.

    `disks` are made when the guest is defined; `images` maps a target to a ready image file to use instead. `memory` in MiB.
    """

    def __init__(
        self,
        folder: Path,
        disks: Sequence[DiskSpec] = STANDARD_DISKS,
        *,
        images: dict[str, Path] | None = None,
        memory: int = 128,
        agent: bool = True,
    ) -> None:
        self.uuid = str(uuid.uuid4())
        self.name = f"lab-{self.uuid[:8]}"
        self.connection = libvirt.open(URI)
        self.disks = {spec.target: spec for spec in disks}
        self.paths = {spec.target: folder / f"{self.name}-{spec.target}.{spec.format}" for spec in disks} | (images or {})
        self._folder = folder
        self._channel: ShellChannel | None = None
        for target, spec in self.disks.items():
            if target not in (images or {}):
                make_image(spec, self.paths[target])
        xml = domain_xml(
            name=self.name,
            uuid=self.uuid,
            image=guest_image(),
            accelerator=accelerator(),
            disks=[(spec, self.paths[target]) for target, spec in self.disks.items()],
            memory=memory,
            agent=agent,
        )
        self.domain = self.connection.defineXML(xml)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()

    # Life

    def start(self, *, paused: bool = False) -> None:
        """Start; returns when the guest answers. With `paused` no guest code ever runs: a running domain, quiet disks."""
        self.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)
        if not paused:
            self.wait_ready()

    def wait_ready(self, seconds: float = 90) -> None:
        """Wait until commands run inside the guest and its agent, when it has one, answers."""
        self.run("true", seconds=seconds)
        if self.has_agent:
            self.wait_agent(seconds)

    def stop(self) -> None:
        """Shut down in order: file systems unmounted, QEMU ends by itself."""
        channel = self._shell()
        with contextlib.suppress(LabError):
            channel.run("sync; umount /data; poweroff -f", seconds=60)
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
        self.destroy()
        flags = libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        with contextlib.suppress(libvirt.libvirtError):
            self.domain.undefineFlags(flags | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
        self.connection.close()

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Hold the virtual CPU still; what the guest had written stays as it is meanwhile."""
        running = self.domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
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
        self._close_channel()
        wait_for(lambda: not self.domain.isActive(), f"guest {self.name} to be off", seconds=60)

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

    def _close_channel(self) -> None:
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
        return "org.qemu.guest_agent.0" in self.domain.XMLDesc()

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
