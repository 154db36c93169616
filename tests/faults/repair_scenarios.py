"""verify --deep notes what is damaged; verify --repair fetches what is damaged or missing from a copy."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from tests.faults.cellar import PASSPHRASE, Cellar
from tests.faults.scenario import nothing, scenario
from tests.faults.upkeep_scenarios import history
from vmcellar.errors import PermanentError
from vmcellar.repository.repair import RepairRequest, repair
from vmcellar.repository.repair_keys import repair_keys
from vmcellar.repository.repository import Repository
from vmcellar.repository.scrub import verify_all
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
        _all_mended(report.not_repaired)
        assert report.after.ok, report.after.findings
    finally:
        repository.close()


def _all_mended(left: Sequence[object]) -> None:
    """Else the command says what is left, and exits with 1: a call that fails ends no repair of all else."""
    if left:
        raise PermanentError(f"not mended: {left}")


def _spoiled_keys(cellar: Cellar) -> None:
    """A repository that does not open: its config, its slot and an epoch key are cut short."""
    history(cellar)
    shutil.copytree(cellar.hot, cellar.folder / "mirror")
    for path in (cellar.hot / "config", *(cellar.hot / "keys").iterdir(), sorted((cellar.hot / "epochs").iterdir())[0]):
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:-1])


def _repair_keys(cellar: Cellar) -> None:
    report = repair_keys(LocalTier(cellar.hot), LocalTier(cellar.folder / "mirror"), PASSPHRASE.encode())
    _all_mended(report.not_repaired)


def _opens(cellar: Cellar) -> None:
    """And what was damaged is kept."""
    cellar.check()
    assert len([path for path in (cellar.hot / "quarantine").rglob("*") if path.is_file()]) >= 3


def _one_flipped_bit(cellar: Cellar) -> None:
    """In the largest pack, which then nothing may be deduplicated against."""
    history(cellar)
    pack = max((cellar.hot / "data").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    shutil.copyfile(pack, cellar.folder / "whole")
    (cellar.folder / "which").write_text(str(pack.relative_to(cellar.hot)))
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)


def _verify(cellar: Cellar) -> None:
    repository = cellar.open()
    try:
        assert not verify_all(repository, deep=True).ok
        if not repository.index.lost():  # a warning says so, as a place that takes no writes can be checked, too
            raise PermanentError("what is damaged could not be noted: the same command again, once that is mended")
    finally:
        repository.close()


def _noted(cellar: Cellar) -> None:
    """What it found is noted for every host, and once the pack is whole again nothing else is wrong."""
    repository = cellar.open()
    try:
        assert repository.index.lost()
    finally:
        repository.close()
    pack = cellar.hot / (cellar.folder / "which").read_text()
    pack.write_bytes((cellar.folder / "whole").read_bytes())
    cellar.check()


def _lost_point(cellar: Cellar) -> None:
    """A point, and a pack that it alone needs, that only the mirror has."""
    history(cellar)
    shutil.copytree(cellar.hot, cellar.folder / "mirror")
    point = sorted((cellar.hot / "points").iterdir())[-1]
    (cellar.folder / "which").write_text(point.name)
    repository = cellar.open()
    (pack, *_) = repository.point(point.name).metadata_packs
    repository.close()
    point.unlink()
    (cellar.hot / "meta" / pack[:2] / pack).unlink()


def _bring_back(cellar: Cellar) -> None:
    repository = Repository.open(cellar.config, refresh=False)
    try:
        wanted = (cellar.folder / "which").read_text()
        report = repair(repository, LocalTier(cellar.folder / "mirror"), RepairRequest(wanted))
        _all_mended(report.not_repaired)
    finally:
        repository.close()


def _is_back(cellar: Cellar) -> None:
    assert (cellar.folder / "which").read_text() in {point.id for point in cellar.check()}


SCENARIOS = (
    scenario("repair", _damaged, _repair, settled=nothing),
    scenario("repair-keys", _spoiled_keys, _repair_keys, settled=nothing, finished=_opens),
    scenario("verify-notes", _one_flipped_bit, _verify, settled=nothing, finished=_noted),
    scenario("repair-point", _lost_point, _bring_back, settled=nothing, finished=_is_back),
)
