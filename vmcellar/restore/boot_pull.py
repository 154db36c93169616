"""Bring a disk over into its overlay: a block job while the VM runs, qemu-img while it is off."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import libvirt

from vmcellar.errors import TransientError
from vmcellar.progress import CancelToken, ProgressSink
from vmcellar.restore.boot_journal import Boot
from vmcellar.sources.libvirt_connection import explain

_POLL_SECONDS = 0.2
_TRIES = 5


def bring_over(
    domain: libvirt.virDomain,
    entry: Boot,
    target: str,
    progress: ProgressSink,
    cancel: CancelToken,
    keep_served: Callable[[], None],
) -> None:
    """Until the overlay of `target` holds all of the disk. May be called again: what came over stays.

    The VM may be started or shut down meanwhile. `keep_served` is called all the time, to see that there is a server.
    TransientError when QEMU gives up again and again.
    """
    tries = 0
    while has_backing(entry.overlay(target)):
        cancel.check()
        keep_served()
        try:
            if not domain.isActive():
                _pull_offline(entry, target)
                continue
            if tries == _TRIES:
                raise TransientError(
                    f"{entry.name}: disk {target} does not come over: QEMU gave up {tries} times",
                    hint=f"the VM and its data are safe; `vmcellar boot --finish {entry.name}` tries again",
                )
            tries += 1
            _pull(domain, target, progress, cancel, keep_served)
        except libvirt.libvirtError as error:
            if domain.isActive():
                raise explain(error, entry.name, f"bringing disk {target} over") from error


def _pull(
    domain: libvirt.virDomain,
    target: str,
    progress: ProgressSink,
    cancel: CancelToken,
    keep_served: Callable[[], None],
) -> None:
    """One block job, begun or found running, until it ends."""
    if not domain.blockJobInfo(target):
        domain.blockPull(target)
    seen = 0
    while info := domain.blockJobInfo(target):
        cancel.check()
        keep_served()
        if info["cur"] > seen:
            progress("restore", info["cur"] - seen)
            seen = info["cur"]
        resume_stopped(domain)
        time.sleep(_POLL_SECONDS)


def resume_stopped(domain: libvirt.virDomain) -> None:
    """Let the guest go on if QEMU stopped it because the repository did not answer."""
    if domain.state() == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR]:
        domain.resume()


def _pull_offline(entry: Boot, target: str) -> None:
    command = ["qemu-img", "rebase", "-f", "qcow2", "-b", "", "--", str(entry.overlay(target))]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TransientError(
            f"{entry.name}: disk {target} does not come over: {done.stderr.strip()}",
            hint=f"if the VM was started just then, type `vmcellar boot --finish {entry.name}`",
        )


def has_backing(overlay: Path) -> bool:
    """Whether the image still needs the repository, as its header says; QEMU changes that when all is there."""
    command = ["qemu-img", "info", "--force-share", "--output=json", "--", str(overlay)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TransientError(f"{overlay}: {done.stderr.strip()}")
    return "backing-filename" in json.loads(done.stdout)
