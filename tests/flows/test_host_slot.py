"""A VM's turn takes one place of the host's limit and of each shared one, and gives them back; who waits is woken."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest
from httpx import Request, Response
from prefect.exceptions import PrefectHTTPStatusError

from tasks import leases, places
from vmcellar.config.model import Limits

NEVER = 1_000_000.0
ASKED = Request("POST", "http://127.0.0.1/api/v2/concurrency_limits/increment-with-lease")


def refused(status: HTTPStatus) -> PrefectHTTPStatusError:
    return PrefectHTTPStatusError(status.phrase, request=ASKED, response=Response(status, request=ASKED))


@dataclass
class FakeServer:
    """Stands for Prefect's: each limit has `places`; what was asked of it."""

    places: int = 1
    taken: list[str] = field(default_factory=list)
    looks: int = 0
    freed_at: int = 0
    """At this look somebody else's place is free; nobody tells."""
    refusals: list[HTTPStatus] = field(default_factory=list)
    """What it says in place of giving a lease, from the last to the first."""
    leases: dict[UUID, list[str]] = field(default_factory=dict)
    renewed: int = 0
    answers: Callable[[], Awaitable[None]] = field(default=lambda: asyncio.sleep(0))

    async def read_global_concurrency_limit_by_name(self, name: str) -> SimpleNamespace:
        self.looks += 1
        if self.looks == self.freed_at:
            self.taken.clear()
        return SimpleNamespace(active=True, active_slots=self.taken.count(name), limit=self.places)

    @asynccontextmanager
    async def client(self, **_settings: object) -> AsyncIterator[FakeServer]:
        yield self

    async def increment_concurrency_slots_with_lease(
        self, names: list[str], slots: int, mode: str, _seconds: float
    ) -> SimpleNamespace:
        assert (slots, mode) == (1, "concurrency")
        if self.refusals:
            raise refused(self.refusals.pop())
        assert all(self.taken.count(name) < self.places for name in names), "only what is free is asked for"
        await self.answers()
        self.taken.extend(names)
        lease = uuid4()
        self.leases[lease] = names
        return SimpleNamespace(json=lambda: {"lease_id": str(lease)})

    async def release_concurrency_slots_with_lease(self, lease: UUID) -> None:
        if self.refusals:
            raise refused(self.refusals.pop())
        for name in self.leases.pop(lease):
            self.taken.remove(name)

    async def renew_concurrency_lease(self, lease: UUID, _seconds: float) -> None:
        assert lease in self.leases
        self.renewed += 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """The server that a run of a deployment asks."""
    made = FakeServer()
    run = SimpleNamespace(flow_run=SimpleNamespace(deployment_id=uuid4()))
    monkeypatch.setattr(places, "FlowRunContext", SimpleNamespace(get=lambda: run))
    monkeypatch.setattr(leases, "get_client", made.client)
    monkeypatch.setattr(places, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(places, "ASK_SECONDS", NEVER)
    return made


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, "tasks.places")
    return caplog


def test_a_place_is_taken_and_given_back_by_one_task(
    fake: FakeServer, tmp_path: Path, warnings: pytest.LogCaptureFixture
) -> None:
    async def turn() -> None:
        async with places.host_slot(Limits(shared={"san-a": 4}), tmp_path):
            assert fake.taken == [places.host_limit(), "vmcellar-shared-san-a"]

    asyncio.run(turn())
    assert fake.taken == []
    assert warnings.text == ""


def test_a_place_is_renewed_while_it_is_held(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.0)

    async def turn() -> None:
        async with places.host_slot(Limits(), tmp_path):
            while fake.renewed < 3:
                await asyncio.sleep(0)
        at_the_end = fake.renewed
        await asyncio.sleep(0.01)
        assert fake.renewed == at_the_end, "it is another's now"

    asyncio.run(turn())
    assert warnings.text == ""


def test_a_place_that_another_host_took_a_moment_before_is_waited_for(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(places, "ASK_SECONDS", 0.0)
    fake.refusals = [HTTPStatus.LOCKED] * 2

    async def turn() -> None:
        async with places.host_slot(Limits(), tmp_path):
            assert fake.taken == [places.host_limit()]

    asyncio.run(turn())
    assert (fake.looks, fake.taken, warnings.text) == (3, [], "")


def test_a_place_that_comes_after_who_asked_was_cancelled_is_given_back(fake: FakeServer, tmp_path: Path) -> None:
    """Else it would be nobody's until its lease ends."""

    async def turn() -> None:
        async with places.host_slot(Limits(), tmp_path):
            raise AssertionError("it was cancelled before")

    async def cancelled() -> None:
        asked, answer = asyncio.Event(), asyncio.Event()

        async def answers() -> None:
            asked.set()
            await answer.wait()

        fake.answers = answers
        waiting = asyncio.create_task(turn())
        await asked.wait()
        waiting.cancel()
        await asyncio.sleep(0)
        answer.set()
        await asyncio.wait([waiting])
        assert waiting.cancelled()

    asyncio.run(cancelled())
    assert (fake.taken, fake.leases) == ([], {})


def test_where_the_database_was_locked_the_client_asks_again_soon_and_not_for_ever() -> None:
    """Prefect's client would wait 2 s at first."""

    def after(status: HTTPStatus, **headers: str) -> str | None:
        response = Response(status, request=ASKED, headers={name.replace("_", "-"): v for name, v in headers.items()})
        asyncio.run(leases.ask_again_soon(response))
        found: str | None = response.headers.get("Retry-After")
        return found

    ASKED.extensions.clear()
    assert after(HTTPStatus.OK) is None
    assert after(HTTPStatus.LOCKED, retry_after="3") == "3"
    assert after(HTTPStatus.SERVICE_UNAVAILABLE, retry_after="7") == "7"
    waits = [float(after(HTTPStatus.SERVICE_UNAVAILABLE) or 0) for _ in range(5)]
    assert waits[0] == leases.FIRST_PAUSE
    assert waits == sorted(waits)
    assert sum(waits) * leases.ROUNDS >= leases.LEASE_SECONDS


def test_a_database_that_stays_locked_costs_no_place_and_gives_none_away(
    fake: FakeServer, tmp_path: Path, warnings: pytest.LogCaptureFixture
) -> None:
    """Each refusal is the last of Prefect's own tries."""

    async def turn() -> None:
        fake.refusals = [HTTPStatus.SERVICE_UNAVAILABLE] * (leases.ROUNDS - 1)
        async with places.host_slot(Limits(), tmp_path):
            assert fake.taken == [places.host_limit()]
            fake.refusals = [HTTPStatus.SERVICE_UNAVAILABLE] * (leases.ROUNDS - 1)

    asyncio.run(turn())
    assert (fake.taken, warnings.text) == ([], "")


def test_who_waits_goes_on_when_a_place_is_given_back(
    fake: FakeServer, tmp_path: Path, warnings: pytest.LogCaptureFixture
) -> None:
    """Five VMs, one place, and no other reason to look again; the server is looked at about once for each try."""
    done: list[str] = []

    async def turn(vm: str) -> None:
        async with places.host_slot(Limits(), tmp_path):
            await asyncio.sleep(0.005)
            done.append(vm)

    async def all_of_them() -> None:
        await asyncio.gather(*(turn(f"vm{number}") for number in range(5)))

    asyncio.run(all_of_them())
    assert sorted(done) == ["vm0", "vm1", "vm2", "vm3", "vm4"]
    assert fake.looks <= 10
    assert warnings.text == ""


def test_a_place_that_nobody_tells_of_is_found_all_the_same(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder was killed, or it was another host's."""
    monkeypatch.setattr(places, "ASK_SECONDS", 0.0)
    fake.taken, fake.freed_at = [places.host_limit()], 3

    async def turn() -> None:
        async with places.host_slot(Limits(), tmp_path):
            pass

    asyncio.run(turn())
    assert fake.looks == 3


@contextmanager
def held_by_another(folder: Path) -> Iterator[None]:
    """Another process of the host has the lock, and does not move."""
    handle = os.open(folder / places.FILE, os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(handle)


def test_a_process_that_stands_still_holds_nobody_up_for_ever(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "TURN_SECONDS", 0.01)

    async def turn() -> None:
        async with places.host_slot(Limits(), tmp_path):
            assert fake.taken == [places.host_limit()]

    with held_by_another(tmp_path):
        asyncio.run(turn())
    assert fake.taken == []


def test_behind_another_process_a_lost_server_is_noticed(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture
) -> None:
    async def lost() -> bool:
        return True

    monkeypatch.setattr(places, "TURN_SECONDS", NEVER)
    monkeypatch.setattr(places, "server_is_lost", lost)

    async def turn() -> None:
        async with places.host_slot(Limits(), tmp_path):
            assert fake.taken == []

    with held_by_another(tmp_path):
        asyncio.run(turn())
    assert "going on without a place" in warnings.text


def test_one_that_waits_and_is_cancelled_leaves_the_next_its_turn(fake: FakeServer, tmp_path: Path) -> None:
    fake.taken, waits = [places.host_limit()], asyncio.Event()

    async def turn() -> None:
        waits.set()
        async with places.host_slot(Limits(), tmp_path):
            pass

    async def both() -> None:
        first = asyncio.create_task(turn())
        await waits.wait()
        while not fake.looks:
            await asyncio.sleep(0)
        second = asyncio.create_task(turn())
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        fake.taken.clear()
        os.utime(tmp_path / places.FILE, ns=(1, 1))
        await second

    asyncio.run(both())
    assert fake.taken == []


def test_of_a_server_that_is_lost_no_place_is_asked_for(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture
) -> None:
    """It may give it after all, when nobody waits any more: then it would be taken until its lease ends."""

    async def lost() -> bool:
        return True

    async def turn() -> str:
        async with places.host_slot(Limits(), tmp_path):
            return "done"

    monkeypatch.setattr(places, "server_is_lost", lost)
    assert asyncio.run(turn()) == "done"
    assert fake.looks == 0
    assert "without a place" in warnings.text
