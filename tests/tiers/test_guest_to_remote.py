"""A real VM's disks to S3 and to RADOS through the whole pipeline, and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.disks import DiskSpec
from lab.guest import LabGuest
from tests.conftest import GuestFactory
from tests.proof.cellar import Cellar
from tests.tiers.conftest import as_written
from vmcellar.config.tiers import TierSettings

pytestmark = pytest.mark.libvirt
MIB = 1 << 20


@pytest.mark.parametrize("kind", ["s3", "ceph"])
def test_a_full_and_an_incremental_restore_equal(
    kind: str, request: pytest.FixtureRequest, make_guest: GuestFactory, vm_tmp: Path
) -> None:
    settings: TierSettings = request.getfixturevalue(f"{kind}_settings")
    hot = as_written(settings)
    cellar = Cellar(vm_tmp / "cellar", {"tiers": {"hot": hot}})
    guest: LabGuest = make_guest((DiskSpec("vda", 16 * MIB),))
    guest.start(paused=True)
    guest.poke("vda", 0, MIB, 1)
    first, before = cellar.backup_with_reference(guest)
    guest.poke("vda", 3 * MIB, 2 * MIB, 2)
    second, after = cellar.backup_with_reference(guest)
    assert (first.kind, second.kind) == ("full", "incremental")
    cellar.assert_restores(first.id, before)
    cellar.assert_restores(second.id, after)
    cellar.assert_nothing_left(guest)
