"""Skip a test by the name of what is missing, except in CI, where missing parts are failures."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import ceph, daemons, glacier, loopdevice, postgres, sshd
from lab.shellcommand import LabError


def in_ci() -> bool:
    """Whether the environment asks for failures instead of skips ($VMCELLAR_CI)."""
    return os.environ.get("VMCELLAR_CI", "") not in {"", "0"}


def requires(name: str) -> None:
    """Skip the calling test, or fail it in CI, unless `name` is there.

    It is "libvirt", "root", "loop devices", "ceph", "glacier", "nbdkit-python", "libguestfs", "postgresql", "sshd" or a
    program's name.
    """
    problem = _CHECKS.get(name, lambda: _program(name))()
    if problem and in_ci():
        pytest.fail(f"{name}: {problem}", pytrace=False)
    if problem:
        pytest.skip(f"{name}: {problem}")


def _libvirt() -> str:
    try:
        daemons.ensure()
    except (LabError, OSError) as error:
        return str(error)
    return ""


def _root() -> str:
    return "" if os.geteuid() == 0 else "run as root"


def _ceph() -> str:
    missing = ceph.missing_programs()
    return f"not installed: {', '.join(missing)}; `./run test` as root installs them" if missing else ""


def _glacier() -> str:
    missing = glacier.missing_modules()
    return f"not installed: {', '.join(missing)}; `./run setup` installs them" if missing else ""


def _program(name: str) -> str:
    return "" if shutil.which(name) else "not installed; `./run setup` as root installs it"


def _nbdkit_python() -> str:
    if _program("nbdkit"):
        return _program("nbdkit")
    done = subprocess.run(["nbdkit", "--dump-plugin", "python"], capture_output=True, check=False)
    return "no Python plugin; `./run setup` as root installs it" if done.returncode else ""


def _libguestfs() -> str:
    parts = {
        "libguestfs0": "/usr/share/doc/libguestfs0",
        "python3-guestfs": "/usr/lib/python3/dist-packages/guestfs.py",
    }
    missing = [name for name, path in parts.items() if not Path(path).exists()]
    missing += [] if list(Path("/boot").glob("vmlinuz-*")) else ["a kernel in /boot"]
    return f"not installed: {', '.join(missing)}; `./run test` as root installs them" if missing else ""


def _sshd() -> str:
    missing = [str(path) for path in (sshd.SSHD,) if not path.exists()]
    missing += [name for name in ("ssh", "ssh-keygen") if not shutil.which(name)]
    return f"not installed: {', '.join(missing)}; `./run test` as root installs openssh-server" if missing else ""


def _postgresql() -> str:
    return "" if postgres.programs() else "not installed; `./run test` as root installs it"


_CHECKS: dict[str, Callable[[], str]] = {
    "libvirt": _libvirt,
    "root": _root,
    "loop devices": lambda: _root() or loopdevice.problem(),
    "ceph": _ceph,
    "glacier": _glacier,
    "nbdkit-python": _nbdkit_python,
    "libguestfs": _libguestfs,
    "postgresql": _postgresql,
    "sshd": _sshd,
}
