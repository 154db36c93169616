"""A VM's turn takes one place of the host's limit, and gives it back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from uuid import uuid4

import anyio
import pytest

from tasks import turns


def test_a_place_is_taken_and_given_back_by_one_task(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Prefect's own renews its lease in a scope that must be left in the task that entered it; so does this one."""
    run = SimpleNamespace(flow_run=SimpleNamespace(deployment_id=uuid4()))
    places: list[str] = []

    @asynccontextmanager
    async def limited(name: str, **_options: bool) -> AsyncIterator[None]:
        with anyio.CancelScope():
            places.append(name)
            yield
            places.remove(name)

    async def turn() -> None:
        async with turns.host_slot():
            assert places == [turns.host_limit()]

    monkeypatch.setattr(turns, "FlowRunContext", SimpleNamespace(get=lambda: run))
    monkeypatch.setattr(turns, "concurrency", limited)
    with caplog.at_level(logging.WARNING, "tasks.turns"):
        asyncio.run(turn())
    assert places == []
    assert caplog.text == ""
