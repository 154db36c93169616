"""A point with every file system that the lab makes, opened once for all tests: the appliance takes its seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from lab.filesystems import DISKS, FileSystems, copies, file_systems, use_working_accelerator
from lab.guest import LabGuest
from lab.paths import vm_folder
from lab.require import requires
from tests.proof.cellar import Cellar
from vmcellar.cli.commands.files import opened
from vmcellar.guestfiles.inside import Inside
from vmcellar.restore.serve import Opening


@pytest.fixture(scope="module")
def built() -> FileSystems:
    """The lab's disks and the tree that they hold."""
    requires("root")
    requires("nbdkit-python")
    requires("libguestfs")
    return file_systems()


@pytest.fixture(scope="module")
def cellar(built: FileSystems, libvirt_daemons: str) -> Iterator[Cellar]:
    """A backup of a running guest with these disks."""
    assert libvirt_daemons
    with (
        vm_folder("files") as folder,
        LabGuest(folder, DISKS, images=copies(built, folder)) as guest,
    ):
        guest.start(paused=True)
        found = Cellar(folder / "cellar")
        found.backup(guest)
        yield found


@pytest.fixture(scope="module")
def inside(cellar: Cellar) -> Iterator[Inside]:
    """Its disks in the appliance, as the command opens them."""
    (point,) = cellar.engine.repository.points()
    with patch.dict(os.environ):
        use_working_accelerator()
        with opened(Opening(cellar.file), point.id, ()) as found:
            yield found


@pytest.fixture
def place() -> Iterator[Path]:
    """Where files are copied to: a file system that takes extended attributes, as the lab's does and not each /tmp."""
    with vm_folder("place") as folder:
        yield folder
