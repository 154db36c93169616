"""Where a path of a guest lies, by what the guest's own files say of mounts. Pure functions; on doubt: not certain.

A mount hides what its folder holds below it. So a path counts only where every mount at, above or below it that the
guest's fstab, its systemd units or its partitions' types tell of is one that was found and mounted. What is mounted by
hand, by autofs or by a script, nothing here can see. Sources: fstab(5), systemd.mount(5),
systemd-gpt-auto-generator(8).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

UNIT_FOLDERS = (
    *(b"/etc/systemd/system", b"/usr/local/lib/systemd/system"),
    *(b"/lib/systemd/system", b"/usr/lib/systemd/system"),
)
_UNITS = (b".mount", b".automount")
GPT_MOUNTS = {
    "4D21B016-B534-45C2-A9FB-5C16E091FD2D": b"/var",
    "7EC6F557-3BC5-4ACA-B293-16EF5DF639D1": b"/var/tmp",
    "933AC7E1-2EB4-4F13-B844-0E14E2AEF915": b"/home",
    "3B8F8425-20E0-4F3B-907F-1A25A76F98E8": b"/srv",
}
"""Where systemd mounts a partition of this type that no fstab names: the Discoverable Partitions Specification."""
FSTAB, TYPE, ROOT = "its fstab", "the type of a partition", "root"
_OCTAL = re.compile(rb"\\([0-7]{3})")
_HEX = re.compile(rb"\\x([0-9a-fA-F]{2})")
_UUID = re.compile(rb"(?:UUID=|/dev/disk/by-uuid/)\"?([0-9A-Fa-f-]+)\"?")
_MAPPED = re.compile(rb"/dev/mapper/((?:[^-/]|--)+)-((?:[^-/]|--)+)")
_VOLUME = re.compile(rb"/dev/(?!disk/|mapper/|md/)([^/]+)/([^/]+)")


@dataclass(frozen=True, slots=True)
class Told:
    """A mount that the guest tells of: of the file system that `name` means, its UUID or its logical volume, or of one
    that is not certain. Names such as /dev/sdb1 may be another disk's here, and labels several file systems'.
    """

    path: bytes
    by: str
    name: str = ""


def fstab(text: bytes) -> list[Told]:
    """The mounts of an fstab, but for swap. What cannot be understood is a mount of / that is not certain."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if not words or words[0].startswith(b"#"):
            continue
        if len(words) < 3:
            found.append(Told(b"/", "a line of its fstab that is not understood"))
            continue
        device, path, kind = words[:3]
        options = words[3].split(b",") if len(words) > 3 else []
        if kind == b"swap" or not path.startswith(b"/"):
            continue
        bound = b"bind" in options or b"rbind" in options
        root = path == b"/" and device.startswith((b"/dev/", b"LABEL=", b"PARTUUID=", b"PARTLABEL="))
        name = "" if bound or kind == b"none" else _name(device) or (ROOT if root else "")
        found.append(Told(_clean(_OCTAL.sub(_octet, path)), FSTAB, name))
    return found


def _name(device: bytes) -> str:
    named = _UUID.fullmatch(device)
    return named[1].decode().lower() if named else volume(device)


def volume(device: bytes) -> str:
    """The logical volume, as GROUP/NAME, that a path in /dev means; empty for any other. Source: lvm(8)."""
    mapped = _MAPPED.fullmatch(device)
    match = mapped or _VOLUME.fullmatch(device)
    if match is None:
        return ""
    group, name = (part.replace(b"--", b"-") if mapped else part for part in match.groups())
    return f"{group.decode(errors='backslashreplace')}/{name.decode(errors='backslashreplace')}"


def units(names: Iterable[bytes]) -> list[Told]:
    """The mounts that systemd's units of these file names make. Where their device is, is not looked for."""
    found = []
    for name in names:
        stem = next((name.removesuffix(kind) for kind in _UNITS if name.endswith(kind)), b"-")
        if stem != b"-":
            path = _HEX.sub(_byte, stem.replace(b"-", b"/"))
            found.append(Told(_clean(b"/" + path), f"the unit {name.decode(errors='replace')}"))
    return found


def partitions(types: Iterable[str]) -> list[Told]:
    """The mounts that systemd makes by itself of partitions of these GPT types."""
    paths = (GPT_MOUNTS.get(kind.upper()) for kind in types)
    return [Told(path, TYPE) for path in paths if path]


def doubt(path: bytes, told: Collection[Told], mounted: Mapping[bytes, Collection[str]]) -> str:
    """Why it is not certain where `path` lies; empty when it is.

    `mounted` are the names that mean nothing else, by mount point; / is the one that all this was read from.
    """
    seen: set[bytes] = set()
    for one in told:
        if one.path == b"/" and one.name:
            continue
        if not (within(path, one.path) or within(one.path, path)):
            continue
        named = f"{one.path.decode(errors='backslashreplace')} is mounted by {one.by}"
        if one.by == FSTAB and one.path in seen:
            return f"{named} twice"
        if one.by == FSTAB:
            seen.add(one.path)
        known = {other.name for other in told if other.path == one.path and other.by == FSTAB}
        certain = one.by in (FSTAB, TYPE) and len(known) == 1 and known <= set(mounted.get(one.path, ()))
        if not certain:
            return f"{named}, and where that lies is not certain"
    return ""


def holder(path: bytes, mounted: Collection[bytes]) -> bytes:
    """The mount point that `path` lies under; / at least."""
    return max((point for point in mounted if within(path, point)), key=len, default=b"/")


def within(path: bytes, folder: bytes) -> bool:
    """Whether `path` is `folder` or below it."""
    return path == folder or path.startswith(folder.rstrip(b"/") + b"/")


def _clean(path: bytes) -> bytes:
    return b"/" + b"/".join(part for part in path.split(b"/") if part)


def _octet(match: re.Match[bytes]) -> bytes:
    return bytes([int(match[1], 8) & 0xFF])


def _byte(match: re.Match[bytes]) -> bytes:
    return bytes([int(match[1], 16)])
