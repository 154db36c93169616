"""A live VM goes back to an earlier point where it is, and its next incremental backup is right all the same."""

from __future__ import annotations

import pytest

from lab import reference
from lab.disks import MIB
from lab.guest import LabGuest
from tests.proof.cellar import Cellar
from vmcellar.progress import CancelToken, no_progress
from vmcellar.restore.in_place import InPlace, Wishes
from vmcellar.sources.libvirt_connection import Connection

pytestmark = pytest.mark.libvirt


def test_back_and_on(quiet_guest: LabGuest, cellar: Cellar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmcellar.restore.in_place._SHUTDOWN_SECONDS", 0.0)  # no guest code runs that could obey
    guest = quiet_guest
    guest.poke("vda", 0, 3 * MIB, 1)
    guest.poke("vdb", MIB, MIB, 2)
    first, then = cellar.backup_with_reference(guest)
    guest.poke("vda", 2 * MIB, 2 * MIB, 3)
    guest.poke_zero("vdb", MIB, MIB)
    cellar.backup(guest)
    guest.poke("vdc", 0, MIB, 4)  # in no point but the one that is taken first
    before = cellar.reference(guest)

    engine = cellar.new_engine()
    connection = Connection(engine.config.libvirt.uri)
    point = engine.repository.point(first.id)
    job = InPlace(engine.repository, point, connection, engine.state, Wishes(stop=True))
    job.prepare(lambda: cellar.backup(guest).id)
    with engine.vm_lock(guest.name):
        report = job.run(no_progress, CancelToken())
    assert reference.mismatches(dict(then), dict(cellar.reference(guest))) == []
    assert report.kept == ()
    cellar.assert_restores(report.safety, before)

    guest.start(paused=True)
    guest.poke("vda", 5 * MIB, MIB, 5)
    on, now = cellar.backup_with_reference(guest)
    assert (on.kind, on.parent) == ("incremental", report.safety)
    cellar.assert_restores(on.id, now)
    assert on.bytes_changed < 16 * MIB, on  # the images' bitmaps recorded what the restore wrote: no disk is read anew
