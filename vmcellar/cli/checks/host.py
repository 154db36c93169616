"""The host: programs, libraries, clock, scratch and landing folders, Prefect."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from vmcellar.cli.checks.finding import Finding
from vmcellar.cli.render.text import size_text
from vmcellar.config.model import Config
from vmcellar.errors import PermanentError
from vmcellar.sources.libvirt_uri import other_host

SCRATCH_LOW = 2 << 30
"""Scratch space below this is a warning: when it runs out during a backup, the guest's own writes fail (pitfall 11)."""

_TIME_ERROR = 5
_TIMEX_BYTES = 208
_PREFECT_TIMEOUT = 3.0
_HUGE_MODES = ("huge=within_size", "huge=always", "huge=advise")


def check_host(config: Config) -> Iterator[Finding]:
    """All checks of this room, in the order in which a backup meets them."""
    yield _libnbd()
    yield _qemu_img()
    if any(job.left_out_paths() for job in config.backups):
        yield _libguestfs()
    if not other_host(config.libvirt.uri):
        yield _scratch(config.scratch)
    yield from _landing(config)
    yield _clock()
    yield _prefect()


def existing_folder(path: Path) -> Path:
    """The nearest folder above or at `path` that exists."""
    while not path.exists():
        path = path.parent
    return path


def free_bytes(path: Path) -> int:
    """Free bytes of the file system that `path` is, or would be, on."""
    return shutil.disk_usage(existing_folder(path)).free


def _libnbd() -> Finding:
    try:
        import nbd

        return Finding("libnbd", "ok", f"version {nbd.NBD().get_version()}")
    except ImportError as error:
        return Finding("libnbd", "failed", f"Python cannot import nbd: {error}", "apt install python3-libnbd")


def _qemu_img() -> Finding:
    path = shutil.which("qemu-img")
    if path is None:
        detail = "not on PATH; it checks restored qcow2 images (raw ones do without)"
        return Finding("qemu-img", "failed", detail, "apt install qemu-utils")
    return Finding("qemu-img", "ok", path)


def _libguestfs() -> Finding:
    from vmcellar.guestfiles.library import check_installed

    try:
        check_installed()
    except PermanentError as error:
        return Finding("libguestfs", "warning", f"{error.message}: no path of a guest is left out", error.hint or "")
    return Finding("libguestfs", "ok", "finds the paths of guests that jobs leave out")


def _scratch(scratch: Path) -> Finding:
    free = free_bytes(scratch)
    detail = f"{scratch}, {size_text(free)} free"
    folder = existing_folder(scratch)
    if not os.access(folder, os.W_OK):
        return Finding("scratch", "failed", f"{folder} is not writable for this user", "run as root, or set scratch:")
    if not _others_may_enter(folder):
        remedy = (
            f"chmod o+x on the folders above it, or set scratch: to a folder that QEMU's user may enter (now {scratch})"
        )
        return Finding("scratch", "warning", f"{folder} cannot be entered by other users, such as QEMU's", remedy)
    if free < SCRATCH_LOW:
        return Finding("scratch", "warning", detail, "free some space there: a full one makes the guest's writes fail")
    return Finding("scratch", "ok", detail)


def _others_may_enter(folder: Path) -> bool:
    return all(part.stat().st_mode & 0o001 for part in (folder, *folder.parents))


def _landing(config: Config) -> Iterator[Finding]:
    folder = config.landing.dir
    budget = config.landing.budget_bytes()
    free = free_bytes(folder)
    detail = f"{folder}, budget {size_text(budget)}, {size_text(free)} free"
    if budget > free:
        yield Finding("landing", "failed", detail, "set landing.budget: below what is free, or landing.dir: elsewhere")
        return
    yield Finding("landing", "ok", detail)
    kind, options = mount_of(existing_folder(folder))
    if kind == "tmpfs" and not any(mode in options for mode in _HUGE_MODES):
        mount = (
            f"mount -t tmpfs -o huge=within_size,mode=0700,size={budget >> 20}m vmcellar-landing /run/vmcellar-landing"
        )
        remedy = f"mkdir -p /run/vmcellar-landing && {mount}; then set landing.dir: /run/vmcellar-landing"
        yield Finding("landing pages", "note", "tmpfs without huge pages: landing costs more CPU than it must", remedy)


def mount_of(path: Path) -> tuple[str, str]:
    """Type and options of the file system that `path` is on, from /proc/self/mounts (proc(5)); the last mount wins."""
    found = ("", "")
    best = -1
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, options, *_ = line.split()
        where = Path(point.replace("\\040", " "))
        if path.resolve().is_relative_to(where) and len(where.parts) >= best:
            found, best = (kind, options), len(where.parts)
    return found


def _clock() -> Finding:
    """Whether the kernel calls its clock synchronised: adjtimex(2), which reads when its modes are zero."""
    libc = ctypes.CDLL(None, use_errno=True)
    state = libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    if state == _TIME_ERROR:
        return Finding("clock", "warning", "not synchronised; points would carry wrong times", "apt install chrony")
    return Finding("clock", "ok", "synchronised")


def _prefect() -> Finding:
    if importlib.util.find_spec("prefect") is None:
        return Finding(
            "prefect", "note", "not installed; backups run in this process, without a UI", "pip install prefect"
        )
    url = os.environ.get("PREFECT_API_URL", "")
    if not url:
        detail = "no server set (PREFECT_API_URL); backups use Prefect's own local mode"
        return Finding(
            "prefect", "note", detail, "prefect server start; export PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    return _prefect_server(url)


def _prefect_server(url: str) -> Finding:
    if not url.startswith(("http://", "https://")):
        return Finding("prefect", "failed", f"PREFECT_API_URL is no web address: {url}", "use http://HOST:4200/api")
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=_PREFECT_TIMEOUT):  # noqa: S310 (checked above)
            return Finding("prefect", "ok", f"server at {url} answers")
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        remedy = "start it (prefect server start), or unset PREFECT_API_URL for local mode"
        return Finding("prefect", "failed", f"server at {url} does not answer: {reason}", remedy)
