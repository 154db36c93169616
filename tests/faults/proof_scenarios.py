"""Proofs of points: images in a scratch folder, and evidence in the repository."""

from __future__ import annotations

from tests.faults.backup_scenarios import with_parent
from tests.faults.cellar import Cellar
from tests.faults.scenario import scenario
from vmcellar.repository import evidence
from vmcellar.restore.prove import ProofOrder, prove_point


def _prove(cellar: Cellar) -> None:
    repository = cellar.open()
    point = repository.points_of("web")[-1]
    evidence.write(repository, prove_point(repository, point, ProofOrder(cellar.folder / "scratch")))
    repository.close()


def _settled(cellar: Cellar) -> None:
    """Whatever is there says that the point is sound, and nothing of the points is lost."""
    repository = cellar.open()
    for name in evidence.names(repository.tier):
        assert evidence.read(repository, name).verdict == "passed"
    repository.close()
    cellar.check()


def _proven(cellar: Cellar) -> None:
    _settled(cellar)
    repository = cellar.open()
    newest = repository.points_of("web")[-1].id
    assert evidence.standings(repository.tier)[newest].proven
    repository.close()
    assert list(cellar.folder.glob("scratch/proofs/*")) == []


SCENARIOS = (scenario("prove", with_parent, _prove, settled=_settled, finished=_proven),)
