"""The per-VM locks of this host: `<state>/locks/<vm>.lock`, held with flock(2) by the process that works on the VM."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from vmcellar.boot import boot_id


@dataclass(frozen=True, slots=True)
class HostLock:
    """A lock that is held now; `since` is when its process started (RFC 3339), empty when it cannot be told."""

    vm: str
    pid: str
    command: str
    since: str
    host: str
    boot: str

    def to_json(self) -> dict[str, Any]:
        """The fields of `locks --json`."""
        return asdict(self)


def held_locks(state: Path) -> list[HostLock]:
    """The locks under a state directory that a process holds, by VM.

    Asks the kernel's list (proc(5), /proc/locks) rather than trying the lock, which would make a backup that begins at
    that moment fail.
    """
    folder = state / "locks"
    files = sorted(folder.glob("*.lock")) if folder.is_dir() else []
    held = _locked_inodes()
    return [_describe(path) for path in files if path.stat().st_ino in held]


def _locked_inodes() -> set[int]:
    lines = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return {int(words[5].rsplit(":", 1)[1]) for words in lines if len(words) > 5 and words[1] == "FLOCK"}


def _describe(path: Path) -> HostLock:
    pid, vm, *_ = [*path.read_text(encoding="utf-8").splitlines(), "", ""]
    command, since = _process(pid)
    return HostLock(vm or unquote(path.stem), pid, command, since, os.uname().nodename, boot_id())


def _process(pid: str) -> tuple[str, str]:
    """Command line and start of a process, from proc(5); empty when it has just ended."""
    folder = Path("/proc") / pid
    try:
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        ticks = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[19])
    except (OSError, IndexError, ValueError):
        return "", ""
    running = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return command, datetime.fromtimestamp(time.time() - running, UTC).isoformat(timespec="seconds")
