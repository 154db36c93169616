"""File systems inside a restored raw image: found with blkid and partx, checked where a checker can read them offline.

The image is a copy made for this, so its journal may be replayed: a point of a running guest is as after a power loss,
and a check without its journal would call a sound file system damaged. ext2 to ext4 are checked by e2fsck, XFS, Btrfs
and what lies on LVM in libguestfs's appliance, where that is installed. Sources: e2fsck(8), blkid(8), partx(8).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vmcellar.errors import PermanentError
from vmcellar.guestfiles.library import check_installed
from vmcellar.repository.evidence import FileSystem

SECTOR = 512
EXT = ("ext2", "ext3", "ext4")
_SHOWN = 300
_LIMIT = 3600.0
MEMBER = "LVM2_member"
APPLIANCE = ("xfs", "btrfs", MEMBER)
"""What is left to libguestfs: checkers whose journal a kernel must replay, and what is in several parts."""
_NEEDS_REPLAY = "needs_recovery"
_TOO_NEW = "unsupported feature"
"""A word of e2fsck about what only a newer one knows: no damage."""


def check_file_systems(image: Path) -> tuple[FileSystem, ...]:
    """Every file system on the disk or its partitions. Changes the image: journals of ext3 and ext4 are replayed.

    One whose type no checker here knows is named as not checked, as are encryption and swap, and without libguestfs
    XFS, Btrfs and LVM. PermanentError when util-linux or e2fsprogs are missing.
    """
    found = _found(image)
    if any(each.type in APPLIANCE for each in found):
        return _with_appliance(image, found)
    return found


def _found(image: Path) -> tuple[FileSystem, ...]:
    whole = _type(image, 0, image.stat().st_size)
    if whole:
        return (_check(image, "disk", whole, 0),)
    return tuple(
        _check(image, f"partition {number}", kind or "nothing known", start)
        for number, start, size in _partitions(image)
        if (kind := _type(image, start, size)) or size
    )


def _with_appliance(image: Path, found: tuple[FileSystem, ...]) -> tuple[FileSystem, ...]:
    """The same with what libguestfs found in place of what was left to it; as it was where it cannot say."""
    try:
        check_installed()
    except PermanentError:
        return found
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    command = [sys.executable, "-m", "vmcellar.guestfiles.checks", str(image)]
    try:
        done = _run(command, {"PYTHONPATH": path})
    except subprocess.TimeoutExpired:
        return _not_checked(found, f"libguestfs did not end within {_LIMIT:.0f} s")
    if done.returncode:
        return _not_checked(found, f"libguestfs: {done.stderr.strip() or f'ended with {done.returncode}'}"[:_SHOWN])
    rows = [(row["place"], row["kind"], row["state"], row["detail"][:_SHOWN]) for row in json.loads(done.stdout)]
    places = {each.place for each in found}
    volumes = [FileSystem(*row) for row in rows if row[0] not in places]
    theirs = {row[0]: FileSystem(*row) for row in rows}
    here = [theirs.get(each.place, each) if each.type in APPLIANCE else each for each in found]
    return (*(each for each in here if not _stands_for(each, volumes)), *volumes)


def _stands_for(found: FileSystem, volumes: list[FileSystem]) -> bool:
    """Whether it only holds volumes that are listed themselves. One whose other parts lie on another disk is not."""
    return bool(volumes) and found.type == MEMBER


def _not_checked(found: tuple[FileSystem, ...], why: str) -> tuple[FileSystem, ...]:
    return tuple(replace(each, detail=why) if each.type in APPLIANCE else each for each in found)


def _partitions(image: Path) -> list[tuple[int, int, int]]:
    """(number, first byte, bytes) of each partition; none when there is no table."""
    done = _run(["partx", "--raw", "--noheadings", "--output", "NR,START,SECTORS", str(image)])
    if done.returncode:
        return []
    rows = [[int(word) for word in line.split()] for line in done.stdout.splitlines() if line.strip()]
    return [(number, start * SECTOR, sectors * SECTOR) for number, start, sectors in rows]


def _type(image: Path, offset: int, size: int) -> str:
    """What blkid knows the bytes as: a file system, LVM2_member, crypto_LUKS, swap; empty for nothing."""
    wanted = ["--match-tag", "TYPE", "--output", "value", "--offset", str(offset), "--size", str(size)]
    return _run(["blkid", "--probe", "--usages", "filesystem,raid,crypto,other", *wanted, str(image)]).stdout.strip()


def _check(image: Path, place: str, kind: str, offset: int) -> FileSystem:
    if kind not in EXT:
        return FileSystem(place, kind, "not checked", "no checker for it here")
    try:
        return _check_ext(FileSystem(place, kind, "clean"), f"{image}?offset={offset}")
    except subprocess.TimeoutExpired as error:
        return FileSystem(place, kind, "not checked", f"{error.cmd[0]} did not end within {_LIMIT:.0f} s")


def _check_ext(sound: FileSystem, name: str) -> FileSystem:
    done = _run(["e2fsck", "-f", "-n", name])
    if done.returncode and _NEEDS_REPLAY in _run(["dumpe2fs", "-h", name]).stdout:
        _run(["e2fsck", "-p", "-E", "journal_only", name])  # never -y: without a sound journal that repairs all it sees
        done = _run(["e2fsck", "-f", "-n", name])
    if not done.returncode:
        return sound
    newer = _TOO_NEW in done.stdout + done.stderr
    return replace(sound, state="not checked" if newer else "damaged", detail=_words(done))


def _words(done: subprocess.CompletedProcess[str]) -> str:
    text = " ".join((done.stdout + done.stderr).split())
    return f"e2fsck ended with {done.returncode}: {text}"[:_SHOWN]


def _run(command: list[str], more: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    environment = {**os.environ, "LC_ALL": "C", "PATH": path, **(more or {})}
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment,
            timeout=_LIMIT, errors="replace",
        )  # fmt: skip
    except FileNotFoundError as error:
        raise PermanentError(
            f"{command[0]} is not installed, so file systems in images cannot be checked",
            hint="apt-get install util-linux e2fsprogs",
        ) from error
