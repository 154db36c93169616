"""Choose KVM only where a guest really boots under it within a time limit; else TCG, QEMU's own translator.

Opening /dev/kvm proves nothing: on some nested machines it opens and a Linux guest then hangs. The answer is kept per
boot of this machine and per QEMU binary.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

from lab.image import GuestImage, guest_image
from lab.paths import lab_dir, lab_lock

Accelerator = Literal["kvm", "tcg"]
QEMU = Path("/usr/bin/qemu-system-x86_64")
PROBE_SECONDS = 10.0
SIGN = b"LAB-GUEST-RUNS"


def accelerator() -> Accelerator:
    """ "kvm" when the lab guest booted under it on this boot of the machine, else "tcg"."""
    image = guest_image()
    with lab_lock("accel"):
        record = lab_dir() / "accel.json"
        key = _key()
        try:
            known = json.loads(record.read_text())
        except (OSError, ValueError):
            known = {}
        if known.get("key") != key:
            known = {"key": key, "kvm": boots("kvm", image, PROBE_SECONDS)}
            record.write_text(json.dumps(known))
    return "kvm" if known["kvm"] else "tcg"


def boots(kind: Accelerator, image: GuestImage, seconds: float) -> bool:
    """Whether the guest reaches its init under this accelerator within `seconds`, run as libvirt's QEMU user."""
    if kind == "kvm" and not Path("/dev/kvm").exists():
        return False
    command = [
        *_as_qemu_user(),
        *(str(QEMU), "-machine", f"pc,accel={kind}", "-m", "128", "-nodefaults", "-display", "none", "-no-reboot"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", "console=ttyS0 quiet lab.probe"),
        *("-serial", "stdio"),
    ]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False)
    except (subprocess.TimeoutExpired, OSError):
        return False
    return SIGN in done.stdout


def _as_qemu_user() -> list[str]:
    # Root may open a /dev/kvm that libvirt's QEMU may not; the probe must see what that user sees.
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--reuid", "libvirt-qemu", "--regid", "kvm", "--init-groups"]


def _key() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {QEMU.stat().st_mtime_ns}"


if __name__ == "__main__":
    print(accelerator())
    sys.exit(0)
