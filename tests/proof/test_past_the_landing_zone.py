"""Chunks that go straight to their packs and chunks that land are one backup: the same disk, the same figures."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from lab.guest import LabGuest
from tests.proof.cellar import MIB, Cellar
from vmcellar.backup import direct, stages
from vmcellar.backup.model import ExportResult
from vmcellar.errors import PermanentError

pytestmark = pytest.mark.libvirt


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[ExportResult]:
    """What every export of this test gave."""
    results: list[ExportResult] = []
    export = stages.export

    def noting(*arguments: Any) -> ExportResult:
        results.append(export(*arguments))
        return results[-1]

    monkeypatch.setattr(stages, "export", noting)
    return results


def test_one_segment_in_packs_and_in_the_landing_zone(
    quiet_guest: LabGuest, cellar: Cellar, exported: list[ExportResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = itertools.cycle([True, False])
    take = direct.DirectPath.take
    monkeypatch.setattr(direct.DirectPath, "take", lambda path, *chunk, **_: next(turns) and take(path, *chunk))
    for seed in (1, 2):
        quiet_guest.poke("vda", seed * MIB, 5 * MIB, seed)
        quiet_guest.poke_zero("vda", (seed + 2) * MIB, MIB)
        point, expected = cellar.backup_with_reference(quiet_guest)
        cellar.assert_restores(point.id, expected)
        mixed = [result for result in exported if result.target == "vda"]
        assert all(result.landed and result.direct for result in mixed)
        for disk in point.disks:
            of_disk = [result for result in exported if result.target == disk.target]
            assert disk.bytes_new == sum(result.landed + result.direct for result in of_disk)
        exported.clear()
    cellar.assert_nothing_left(quiet_guest)


def test_a_pack_that_cannot_be_written_fails_the_export_and_leaves_nothing(
    quiet_guest: LabGuest, cellar: Cellar, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet_guest.poke("vda", 0, 4 * MIB, seed=5)
    with monkeypatch.context() as patch:
        patch.setattr("vmcellar.repository.pack_writer.PackWriter.append", _full)
        with pytest.raises(PermanentError, match="no space for packs"):
            cellar.backup(quiet_guest)
    cellar.assert_let_go(quiet_guest)
    point, expected = cellar.backup_with_reference(quiet_guest)
    cellar.assert_restores(point.id, expected)
    cellar.assert_nothing_left(quiet_guest)


def _full(*_: Any) -> None:
    raise PermanentError("no space for packs", hint="free some")
