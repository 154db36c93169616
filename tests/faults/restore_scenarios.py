"""restore: into a folder of this host."""

from __future__ import annotations

import shutil

from tests.faults.backup_scenarios import with_parent
from tests.faults.cellar import Cellar
from tests.faults.scenario import scenario
from vmcellar.errors import PermanentError
from vmcellar.restore.report import RestoreTarget
from vmcellar.restore.restore import restore_point


def _restore(cellar: Cellar) -> None:
    repository = cellar.open()
    point = repository.points_of("web")[-1]
    restore_point(repository, point, RestoreTarget(cellar.folder / "out", "raw"))
    repository.close()


def _again(cellar: Cellar) -> None:
    """As a user would: what is refused because an image has its name already, without the domain.xml that comes last,
    is removed by hand.
    """
    folder = cellar.folder / "out"
    try:
        _restore(cellar)
    except PermanentError as error:
        assert "exists already" in error.message
        if (folder / "domain.xml").exists():
            return
        shutil.rmtree(folder)
        _restore(cellar)


def _restored(cellar: Cellar) -> None:
    point = [point for point in cellar.check() if point.vm == "web"][-1]
    for target, expected in cellar.disks_of(point).items():
        assert (cellar.folder / "out" / f"{target}.raw").read_bytes() == expected
    assert (cellar.folder / "out" / "domain.xml").exists()


SCENARIOS = (scenario("restore", with_parent, _restore, again=_again, finished=_restored),)
