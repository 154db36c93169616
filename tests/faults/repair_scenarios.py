"""verify --repair: what is damaged or missing comes back from a copy."""

from __future__ import annotations

import shutil

from tests.faults.cellar import PASSPHRASE, Cellar
from tests.faults.scenario import nothing, scenario
from tests.faults.upkeep_scenarios import history
from vmcellar.repository.repair import RepairRequest, repair
from vmcellar.repository.repair_keys import repair_keys
from vmcellar.repository.repository import Repository
from vmcellar.tiers.local import LocalTier


def _damaged(cellar: Cellar) -> None:
    """A flipped bit, a missing pack and a cut point, and a mirror from before."""
    history(cellar)
    shutil.copytree(cellar.hot, cellar.folder / "mirror")
    pack = max((cellar.hot / "data").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    next(path for path in sorted((cellar.hot / "meta").rglob("*")) if path.is_file()).unlink()
    point = sorted((cellar.hot / "points").iterdir())[-1]
    point.chmod(0o600)
    point.write_bytes(point.read_bytes()[:-1])


def _repair(cellar: Cellar) -> None:
    repository = Repository.open(cellar.config, refresh=False)
    try:
        report = repair(repository, LocalTier(cellar.folder / "mirror"), RepairRequest(deep=True))
        assert report.not_repaired == ()
        assert report.after.ok, report.after.findings
    finally:
        repository.close()


def _spoiled_keys(cellar: Cellar) -> None:
    """A repository that does not open: its config, its slot and an epoch key are cut short."""
    history(cellar)
    shutil.copytree(cellar.hot, cellar.folder / "mirror")
    for path in (cellar.hot / "config", *(cellar.hot / "keys").iterdir(), sorted((cellar.hot / "epochs").iterdir())[0]):
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:-1])


def _repair_keys(cellar: Cellar) -> None:
    report = repair_keys(LocalTier(cellar.hot), LocalTier(cellar.folder / "mirror"), PASSPHRASE.encode())
    assert report.not_repaired == []


def _opens(cellar: Cellar) -> None:
    """And what was damaged is kept."""
    cellar.check()
    assert len([path for path in (cellar.hot / "quarantine").rglob("*") if path.is_file()]) >= 3


SCENARIOS = (
    scenario("repair", _damaged, _repair, settled=nothing),
    scenario("repair-keys", _spoiled_keys, _repair_keys, settled=nothing, finished=_opens),
)
