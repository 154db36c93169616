"""Check the file systems of a raw image in libguestfs's appliance: XFS and Btrfs, and these and ext on LVM.

Their checkers want a journal replayed first, which only a kernel does: the appliance's, as this host's never mounts a
guest's file system. All that is written goes to an overlay that is thrown away.

    python -m vmcellar.guestfiles.checks IMAGE      prints a JSON list of Checked

It is a program of its own, so that whoever waits for it can put an end to it, and QEMU ends with it.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from vmcellar.guestfiles.library import Guestfs, GuestfsError

EXT = ("ext2", "ext3", "ext4")
BTRFS_DEVICES = 0x10000 + 136
"""Where the superblock says on how many devices a Btrfs lies, little-endian. Source: Btrfs on-disk format."""
XFS_HEAD, XFS_FEATURES, XFS_NEW = 64, 216, 0x40
"""Superblock of XFS: sb_rblocks at 16, sb_logstart at 48 (0: on another device), sb_features_incompat at 216, whose
bits from this one on came with Linux 6.10 and later. Source: XFS Algorithms & Data Structures.
"""
TOO_NEW = ("unsupported option features", "unsupported feature")
"""Words of btrfs and e2fsck about a file system that is newer than they are."""
LAUNCH_SECONDS = 300
"""Where KVM is there and does not work, an appliance may never start."""

State = Literal["clean", "damaged", "not checked"]


@dataclass(frozen=True, slots=True)
class Checked:
    """One file system: `place` is `disk`, `partition 2`, or a volume such as vg0/root; `detail` are the checker's
    words.
    """

    place: str
    kind: str
    state: State
    detail: str = ""


def check(image: str) -> list[Checked]:
    """All file systems of a raw image, those named that cannot be checked; GuestfsError when the appliance fails."""
    with Guestfs() as guestfs:
        guestfs.add_image(image)
        signal.alarm(LAUNCH_SECONDS)
        guestfs.launch()
        signal.alarm(0)
        return list(_each(guestfs))


def _each(guestfs: Guestfs) -> Iterator[Checked]:
    (disk,) = guestfs.list_devices()
    for device in sorted(guestfs.containers()):
        rest = device.removeprefix(disk)
        place = f"partition {rest.decode()}" if rest else "disk"
        if rest == device:
            place = device.removeprefix(b"/dev/").decode(errors="backslashreplace")
        try:
            kind = guestfs.vfs_type(device).decode()
        except GuestfsError as error:  # such as a volume of which a part lies on another disk
            yield Checked(place, "unknown", "not checked", error.message)
            continue
        if kind:
            yield Checked(place, kind, *_state(guestfs, device, kind))


def _state(guestfs: Guestfs, device: bytes, kind: str) -> tuple[State, str]:
    """Only what its checker could read whole is clean or damaged."""
    checkers: dict[str, Callable[[bytes], str]] = {"xfs": guestfs.xfs_problem, "btrfs": guestfs.btrfs_problem}
    checkers |= dict.fromkeys(EXT, guestfs.ext_problem)
    if kind not in checkers:
        return "not checked", "no checker for it here"
    try:
        if why := _beyond_reach(guestfs, device, kind):
            return "not checked", why
        unmounted = _replay(guestfs, device)
        found = checkers[kind](device)
        detail = "; ".join(words for words in (unmounted, found) if words)
        newer = any(words in found for words in TOO_NEW) or (kind == "xfs" and _newer_xfs(guestfs, device))
    except GuestfsError as error:
        return "not checked", error.message
    if unmounted and (newer or not found):
        return "not checked", detail
    return ("damaged", detail) if found else ("clean", "")


def _replay(guestfs: Guestfs, device: bytes) -> str:
    """Mount it once, so that its journal is replayed, as at the guest's next boot. Why that failed, or nothing."""
    try:
        guestfs.mount_writable(device, b"/")
    except GuestfsError as error:
        return f"it cannot be mounted: {error.message}"
    guestfs.unmount()
    return ""


def _beyond_reach(guestfs: Guestfs, device: bytes, kind: str) -> str:
    """What a checker would lack, and might call damage: its program, or parts of the file system on other devices."""
    if kind not in EXT and not guestfs.has(kind):
        return f"the appliance has no programs for {kind}"
    if kind == "btrfs":
        devices = int.from_bytes(guestfs.read(device, 8, BTRFS_DEVICES), "little")
        return f"it lies on {devices} devices" if devices > 1 else ""
    if kind == "xfs":
        block = guestfs.read(device, XFS_HEAD, 0)
        realtime, log = block[16:24], block[48:56]
        return "" if any(log) and not any(realtime) else "its log or its realtime part is on another device"
    return ""


def _newer_xfs(guestfs: Guestfs, device: bytes) -> bool:
    features = int.from_bytes(guestfs.read(device, 4, XFS_FEATURES), "big")
    return features >= XFS_NEW


def main() -> int:
    """Check the image that the command line names."""
    try:
        found = check(sys.argv[1])
    except GuestfsError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    sys.stdout.write(json.dumps([asdict(each) for each in found]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
