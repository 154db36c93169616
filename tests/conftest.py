"""Fixtures that all tests share: libvirt's daemons, guests, folders that QEMU may enter, Hypothesis profiles."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from lab import daemons
from lab.guest import LabGuest, sweep
from lab.paths import vm_folder
from lab.require import in_ci, requires
from lab.suite import PARTS

GuestFactory = Callable[..., LabGuest]

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("dev", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci" if in_ci() else "dev")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--part`: the half of the suite that lab/suite.py runs beside the other one."""
    parser.addoption("--part", choices=PARTS, help="machine: tests that need libvirt or a Prefect server; rest: others")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests of the part that was asked for."""
    if part := config.getoption("part"):
        others = [item for item in items if part_of(item) != part]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if part_of(item) == part]


def part_of(item: pytest.Item) -> str:
    """The part of a test, by its marks and fixtures: one libvirt is all that a machine has, and tests restart it."""
    machine, rest = PARTS
    marked = any(item.get_closest_marker(name) for name in ("libvirt", "guest", "prefect", "browser"))
    return machine if marked or {"libvirt_daemons", "server"} & set(getattr(item, "fixturenames", ())) else rest


def pytest_configure() -> None:
    """A shell starts background jobs with SIGINT ignored; the tests of cancellation need Python's own handling."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def libvirt_daemons(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URI of a libvirt that answers; daemons started for this session end with it unless others use them."""
    if request.config.getoption("part") == PARTS[1]:
        pytest.fail("a test that needs libvirt has neither its fixture nor its mark, and would run beside others")
    requires("libvirt")
    sweep()
    yield daemons.URI
    with contextlib.suppress(OSError):
        daemons.stop()


@pytest.fixture
def vm_tmp() -> Iterator[Path]:
    """A folder of this test that libvirt's QEMU may write to; pytest's own tmp_path is closed to it."""
    with vm_folder("test") as folder:
        yield folder


@pytest.fixture
def make_guest(libvirt_daemons: str, vm_tmp: Path) -> Iterator[GuestFactory]:
    """Call it like LabGuest without the folder: a defined guest, removed at the end of the test."""
    assert libvirt_daemons
    with contextlib.ExitStack() as stack:

        def make(*arguments: Any, **options: Any) -> LabGuest:
            return stack.enter_context(LabGuest(vm_tmp, *arguments, **options))

        yield make


@pytest.fixture
def guest(make_guest: GuestFactory) -> LabGuest:
    """A booted guest with the standard disks and an agent that answers."""
    made = make_guest()
    made.start()
    return made


@pytest.fixture
def paused_guest(make_guest: GuestFactory) -> LabGuest:
    """A running domain with the standard disks in which no guest code ever runs: half a second instead of a boot."""
    made = make_guest()
    made.start(paused=True)
    return made


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("VMCELLAR_") and name not in KEPT]:
        monkeypatch.delenv(name)


KEPT = {"VMCELLAR_CI", "VMCELLAR_LAB_DIR"}
