"""restore: into a folder of this host, and onto disks that are there."""

from __future__ import annotations

from tests.faults.backup_scenarios import with_parent
from tests.faults.cellar import Cellar
from tests.faults.scenario import scenario
from vmcellar.errors import PermanentError
from vmcellar.restore.destinations import Destination
from vmcellar.restore.in_use import NoMachines
from vmcellar.restore.onto import restore_onto
from vmcellar.restore.report import RestoreTarget
from vmcellar.restore.restore import restore_point
from vmcellar.restore.unfinished import unfinished


def _restore(cellar: Cellar) -> None:
    repository = cellar.open()
    point = repository.points_of("web")[-1]
    restore_point(repository, point, RestoreTarget(cellar.folder / "out", "raw"))
    repository.close()


def _again(cellar: Cellar) -> None:
    """As a user would: it is refused only if all of it was there already."""
    try:
        _restore(cellar)
    except PermanentError as error:
        assert "exists already" in error.message
        assert (cellar.folder / "out" / "domain.xml").exists()


def _restored(cellar: Cellar) -> None:
    point = [point for point in cellar.check() if point.vm == "web"][-1]
    for target, expected in cellar.disks_of(point).items():
        assert (cellar.folder / "out" / f"{target}.raw").read_bytes() == expected
    assert (cellar.folder / "out" / "domain.xml").exists()


def _with_disk(cellar: Cellar) -> None:
    with_parent(cellar)
    repository = cellar.open()
    point = repository.points_of("web")[0]
    restore_point(repository, point, RestoreTarget(cellar.folder / "there", "raw"))
    repository.close()


def _onto(cellar: Cellar) -> None:
    repository = cellar.open()
    point = repository.points_of("web")[-1]
    pairs = {
        disk.target: Destination(disk.target, "file", "raw", cellar.folder / "there" / f"{disk.target}.raw")
        for disk in point.disks
    }
    restore_onto(repository, point, pairs, cellar.folder / "state", NoMachines())
    repository.close()


def _overwritten(cellar: Cellar) -> None:
    point = [point for point in cellar.check() if point.vm == "web"][-1]
    for target, expected in cellar.disks_of(point).items():
        assert (cellar.folder / "there" / f"{target}.raw").read_bytes() == expected
    assert not unfinished(cellar.folder / "state")


SCENARIOS = (
    scenario("restore", with_parent, _restore, again=_again, finished=_restored),
    scenario("restore-onto", _with_disk, _onto, finished=_overwritten),
)
