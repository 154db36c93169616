"""A file as a block device of this machine; root alone. Source: losetup(8)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.shellcommand import LabError, call


@contextmanager
def loop_device(backing: Path) -> Iterator[Path]:
    """The device; what is written to it lands in `backing`, which stays."""
    device = Path(call(["losetup", "--find", "--show", backing]).strip())
    try:
        yield device
    finally:
        call(["losetup", "--detach", device])


def problem() -> str:
    """Why there are no loop devices here; empty where there are."""
    try:
        call(["losetup", "--find"])
    except LabError as error:
        return str(error)
    return ""
