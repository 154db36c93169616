"""Comparing a point with its VM: what cannot be compared is never called equal."""

from __future__ import annotations

import pytest

from tests.backup.world import EmptySource
from vmcellar.backup import pipeline
from vmcellar.backup.model import BackupRequest
from vmcellar.backup.source_check import differences
from vmcellar.engine import Engine
from vmcellar.errors import PermanentError
from vmcellar.progress import CancelToken


def test_a_point_none_of_whose_disks_can_be_compared_is_not_called_equal(engine: Engine, source: EmptySource) -> None:
    """As when the VM's images were replaced since, or its bitmaps broke: the source says that all is to be read."""
    point = engine.repository.point(pipeline.run(engine, BackupRequest("vm")).id)
    with pytest.raises(PermanentError, match=f"no disk of point {point.id} can be compared with vm: vda: first backup"):
        differences(engine, point, CancelToken())
    assert not source.held
