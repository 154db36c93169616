"""A VM's turn takes one place of the host's limit and of each shared one, and gives them back."""

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
from vmcellar.config.model import Limits


def test_a_place_is_taken_and_given_back_by_one_task(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Prefect's own renews its lease in a scope that must be left in the task that entered it; so does this one."""
    run = SimpleNamespace(flow_run=SimpleNamespace(deployment_id=uuid4()))
    places: list[str] = []

    @asynccontextmanager
    async def limited(names: list[str], **_options: object) -> AsyncIterator[None]:
        with anyio.CancelScope():
            places.extend(names)
            yield
            places.clear()

    async def turn() -> None:
        async with turns.host_slot(Limits(shared={"san-a": 4})):
            assert places == [turns.host_limit(), "vmcellar-shared-san-a"]

    monkeypatch.setattr(turns, "FlowRunContext", SimpleNamespace(get=lambda: run))
    monkeypatch.setattr(turns, "concurrency", limited)
    with caplog.at_level(logging.WARNING, "tasks.turns"):
        asyncio.run(turn())
    assert places == []
    assert caplog.text == ""


def test_of_a_server_that_is_lost_no_place_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may give it after all, when nobody waits any more: then it would be taken until its lease ends."""
    run = SimpleNamespace(flow_run=SimpleNamespace(deployment_id=uuid4()))

    async def lost() -> bool:
        return True

    def never(*_arguments: object, **_options: object) -> None:
        pytest.fail("a place was asked for")

    async def turn() -> str:
        async with turns.host_slot(Limits()):
            return "done"

    monkeypatch.setattr(turns, "FlowRunContext", SimpleNamespace(get=lambda: run))
    monkeypatch.setattr(turns, "server_is_lost", lost)
    monkeypatch.setattr(turns, "concurrency", never)
    with caplog.at_level(logging.WARNING, "tasks.turns"):
        assert asyncio.run(turn()) == "done"
    assert "without a place" in caplog.text
