"""File systems inside a restored raw image: found with blkid and partx, checked where a checker can read them offline.

The image is a copy made for this, so its journal may be replayed: a point of a running guest is as after a power loss,
and a check without its journal would call a sound file system damaged. Sources: e2fsck(8),
blkid(8), partx(8).
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

from vmcellar.errors import PermanentError
from vmcellar.repository.evidence import FileSystem

SECTOR = 512
EXT = ("ext2", "ext3", "ext4")
_SHOWN = 300
_LIMIT = 3600.0
_NEEDS_REPLAY = "needs_recovery"


def check_file_systems(image: Path) -> tuple[FileSystem, ...]:
    """Every file system on the disk or its partitions. Changes the image: journals of ext3 and ext4 are replayed.

    One whose type no checker here knows is named as not checked, as are LVM, encryption and swap. PermanentError when
    util-linux or e2fsprogs are missing.
    """
    whole = _type(image, 0, image.stat().st_size)
    if whole:
        return (_check(image, "disk", whole, 0),)
    return tuple(
        _check(image, f"partition {number}", kind or "nothing known", start)
        for number, start, size in _partitions(image)
        if (kind := _type(image, start, size)) or size
    )


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
    return replace(sound, state="damaged", detail=_words(done)) if done.returncode else sound


def _words(done: subprocess.CompletedProcess[str]) -> str:
    text = " ".join((done.stdout + done.stderr).split())
    return f"e2fsck ended with {done.returncode}: {text}"[:_SHOWN]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C", "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
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
