"""One booted guest for the tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.guest import LabGuest
from lab.paths import vm_folder


@pytest.fixture(scope="module")
def shared_guest(libvirt_daemons: str) -> Iterator[LabGuest]:
    """A booted guest with the standard disks, shared by the tests of one module."""
    assert libvirt_daemons
    with vm_folder("shared") as folder, LabGuest(folder) as guest:
        guest.start()
        yield guest
