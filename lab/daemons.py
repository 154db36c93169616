"""Start libvirt's daemons where none run, and stop those that were started here; no systemd needed.

`ensure()` is idempotent and safe from any number of processes. Each process that uses the daemons holds a shared file
lock until it ends, so `stop()` by one of them leaves the daemons to the others; the kernel drops a killed user's lock.
"""

from __future__ import annotations

import fcntl
import grp
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import libvirt

from lab.paths import lab_dir, lab_lock
from lab.shellcommand import LabError, call
from lab.waiting import wait_for

URI = "qemu:///system"
REAPER = Path(__file__).with_name("reaper.py")
DAEMONS = ("virtlogd", "virtlockd", "libvirtd")


def answers() -> bool:
    """Whether qemu:///system answers now."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    try:
        libvirt.open(URI).close()
    except libvirt.libvirtError:
        return False
    return True


def ensure() -> bool:
    """Make qemu:///system answer; True when the daemons were started by this call. LabError when that fails."""
    _hold_users_lock()
    with lab_lock("daemons"):
        _share_kvm()
        if answers():
            return False
        if os.geteuid() != 0:
            raise LabError(f"{URI} does not answer and only root can start libvirtd; start it, or run as root")
        for name in DAEMONS:
            _start(name)
        wait_for(answers, f"{URI} to answer; see {_log()}", seconds=60)
        return True


def stop() -> bool:
    """Stop the daemons that a laboratory started; False when another process uses them or a domain runs."""
    with lab_lock("daemons"):
        started = [name for name in DAEMONS if _ours(name)]
        if not started or _others_use_them() or _domains_run():
            return False
        for name in reversed(started):
            _end(name)
        return True


def restart_libvirtd() -> None:
    """End libvirtd and start it again while its domains run on; every other client loses its connection."""
    with lab_lock("daemons"):
        if Path("/run/systemd/system").exists():
            call(["systemctl", "restart", "libvirtd"])
        else:
            ours = _ours("libvirtd")
            _end("libvirtd")
            _start("libvirtd")
            if not ours:
                _record("libvirtd").unlink()
        wait_for(answers, f"{URI} to answer again; see {_log()}", seconds=60)


@contextmanager
def hanging_libvirtd() -> Iterator[None]:
    """While the block runs libvirtd is stopped by a signal: it takes connections, and answers nothing."""
    with lab_lock("daemons"):
        pid = _system_pid("libvirtd")
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


def _share_kvm() -> None:
    # Debian's udev gives /dev/kvm to the group kvm. Without udev only root may open it, and libvirt then finds its
    # cached knowledge of QEMU stale (KVM there, KVM not usable) and probes QEMU again at every define: 80 s each time
    # where process 1 is slow to collect dead processes.
    device = Path("/dev/kvm")
    if os.geteuid() == 0 and device.exists() and device.stat().st_gid == 0:
        with suppress(KeyError):
            os.chown(device, 0, grp.getgrnam("kvm").gr_gid)
            device.chmod(0o660)


@cache
def _hold_users_lock() -> int:
    # A bare descriptor, held until the process ends; a file object would be warned about then.
    file = os.open(lab_dir() / "daemon-users.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def _others_use_them() -> bool:
    file = _hold_users_lock()
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_SH)
    return False


def _domains_run() -> bool:
    try:
        connection = libvirt.open(URI)
    except libvirt.libvirtError:
        return False
    try:
        return bool(connection.numOfDomains())
    finally:
        connection.close()


def _start(name: str) -> None:
    if _running(_system_pid(name), name):
        return
    program = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise LabError(f"{name} is not installed; `./run setup` as root installs it")
    with _log().open("ab") as log:
        # Its own session: a Ctrl-C at the tests must not end the daemons. The reaper lives as long as its descendants.
        reaper = subprocess.Popen(
            [sys.executable, "-I", str(REAPER), program],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    reaper.returncode = 0  # it outlives us on purpose; else Popen warns when it is dropped
    wait_for(lambda: _running(_system_pid(name), name), f"{name} to start; see {_log()}")
    _record(name).write_text(str(_system_pid(name)))


def _end(name: str) -> None:
    pid = _system_pid(name)
    if _running(pid, name):
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not _running(pid, name), f"{name} to end")
    _record(name).unlink(missing_ok=True)


def _ours(name: str) -> bool:
    record = _record(name)
    return record.exists() and _running(int(record.read_text()), name)


def _running(pid: int, name: str) -> bool:
    try:
        return pid > 0 and Path(f"/proc/{pid}/comm").read_text().strip() == name
    except OSError:
        return False


def _system_pid(name: str) -> int:
    try:
        return int(Path(f"/run/{name}.pid").read_text())
    except (OSError, ValueError):
        return 0


def _record(name: str) -> Path:
    return lab_dir() / f"{name}.started-pid"


def _log() -> Path:
    return lab_dir() / "daemons.log"


def main(arguments: list[str]) -> int:
    """`python -m lab.daemons start|stop`: start what is missing, or stop what a laboratory started."""
    if arguments == ["stop"]:
        print("stopped" if stop() else "left alone: not started here, or still in use")
    elif arguments == ["start"]:
        print("started" if ensure() else "already there")
    else:
        print("use: python -m lab.daemons start|stop", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
