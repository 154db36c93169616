"""Fixtures of the proofs: a whole vmcellar, and small guests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.disks import MIB, DiskSpec
from lab.guest import LabGuest
from lab.paths import vm_folder
from tests.proof.cellar import Cellar

SMALL_DISKS = (
    DiskSpec("vda", 16 * MIB),
    DiskSpec("vdb", 8 * MIB + 512 * 3, detect_zeroes="off"),
    DiskSpec("vdc", 8 * MIB, sector=4096),
)
"""An odd size and 4 KiB sectors among them."""

CellarFactory = Callable[..., Cellar]


@pytest.fixture
def make_cellar(vm_tmp: Path) -> CellarFactory:
    """Call it with a name and sections of the configuration."""

    def make(name: str = "cellar", **settings: object) -> Cellar:
        return Cellar(vm_tmp / name, settings)

    return make


@pytest.fixture
def cellar(make_cellar: CellarFactory) -> Cellar:
    """A cellar with the default settings."""
    return make_cellar()


@pytest.fixture
def quiet_guest(make_guest: Callable[..., LabGuest]) -> LabGuest:
    """A running domain in which no guest code runs, with small disks: every change is the test's."""
    made = make_guest(SMALL_DISKS)
    made.start(paused=True)
    return made


@pytest.fixture(scope="module")
def shared_quiet_guest(libvirt_daemons: str) -> Iterator[LabGuest]:
    """The same for all tests of a module; each test only adds changes."""
    assert libvirt_daemons
    with vm_folder("proof") as folder, LabGuest(folder, SMALL_DISKS) as guest:
        guest.start(paused=True)
        yield guest
