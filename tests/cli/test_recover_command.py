"""`vmcellar recover VM` of a name that nobody knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.backup.world import make_engine
from tests.cli.conftest import quick_cost
from vmcellar.backup import pipeline, selection
from vmcellar.backup.model import BackupRequest
from vmcellar.backup.selection import KnownVm
from vmcellar.cli.commands.recover import _refuse_unknown
from vmcellar.errors import PermanentError, TransientError


def test_a_mistyped_name_is_not_said_to_have_nothing_to_recover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmcellar.crypto.passphrase.Argon2Cost", quick_cost)
    engine = make_engine(tmp_path)
    pipeline.run(engine, BackupRequest("vm"))
    monkeypatch.setattr(selection, "known_vms", lambda *_, **__: [KnownVm("web1", running=True)])
    with pytest.raises(PermanentError, match="wbe1: no VM of this name is known") as raised:
        _refuse_unknown(engine, "wbe1")
    assert "web1" in raised.value.hint
    _refuse_unknown(engine, "web1")
    _refuse_unknown(engine, "vm")

    def away(*_: object, **__: object) -> None:
        raise TransientError("libvirt does not answer")

    monkeypatch.setattr(selection, "known_vms", away)
    _refuse_unknown(engine, "wbe1")
    engine.repository.close()
