"""A process does not end while a guest of its backup may still be frozen (pitfall 17); a fake domain, no hypervisor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
import libvirt
from vmcellar.sources import libvirt_agent

libvirt_agent.THAW_INTERVAL_SECONDS = 0.1
XML = (
    "<domain><devices><channel><target name='org.qemu.guest_agent.0' state='connected'/></channel></devices></domain>"
)

class SlowGuest:
    # The freeze takes longer than its limit; the agent answers again at the fourth thaw.
    thaws = 0
    def XMLDesc(self, flags): return XML
    def name(self): return "vm"
    def isActive(self): return True
    def state(self): return [libvirt.VIR_DOMAIN_RUNNING, 1]
    def agentSetResponseTimeout(self, seconds): pass
    def fsFreeze(self): raise libvirt.libvirtError("no answer")
    def fsThaw(self):
        self.thaws += 1
        if self.thaws < 4: raise libvirt.libvirtError("no answer")

quiesce = libvirt_agent.Quiesce(SlowGuest(), Path(sys.argv[1]), 1)
quiesce.freeze()
again = libvirt_agent.Quiesce(SlowGuest(), Path(sys.argv[1]), 1)
again.freeze()
assert not again.quiesced and "earlier freeze" in again.reason, again.reason
again.thaw()
"""


def test_the_process_waits_for_a_thaw_that_is_owed(tmp_path: Path) -> None:
    marker = tmp_path / "frozen"
    command = [sys.executable, "-c", SCRIPT, str(marker)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "has not confirmed its thaw" in done.stderr
    assert not marker.exists(), "the guest was left frozen"
