"""Leases on places of Prefect's global concurrency limits, by the API's own requests.

`prefect.concurrency` does more: for each lease a thread with an HTTP client of its own that renews at once, two events,
and a wait that the server chooses where nothing is free. And where SQLite was locked Prefect's client waits 2 s before
it asks again, in which no VM of the host begins (docs/prefect.md, "Many jobs on one server").
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING
from uuid import UUID

from prefect import get_client
from prefect.exceptions import PrefectHTTPStatusError

if TYPE_CHECKING:
    from httpx import Response
    from prefect.client.orchestration import PrefectClient

log = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
"""How long a killed run keeps its place, and a server that was away may take to come back without giving it to another.
Prefect's least; by default a kill would cost the host a place for five minutes."""

RENEW_SECONDS = LEASE_SECONDS / 2

CANCEL_SECONDS = 5.0
"""How long who is cancelled waits for a lease that he has asked for, to give it back."""

FIRST_PAUSE = 0.1
GROWTH = 2
ROUNDS = 20
"""Of Prefect's five tries with these pauses, 3 s altogether: a minute, as with its own."""
_TRIES = "vmcellar_tries"


def leasing() -> AbstractAsyncContextManager[PrefectClient]:
    """A client of the server that asks again soon where SQLite was locked: after 0.1, 0.2, 0.4 s and so on."""
    return get_client(httpx_settings={"event_hooks": {"response": [ask_again_soon]}})


async def ask_again_soon(response: Response) -> None:
    """Tell Prefect's client, which tries a request again that was answered with 503, how long to wait before it.

    The server itself names no time.
    """
    if response.status_code == HTTPStatus.SERVICE_UNAVAILABLE and "Retry-After" not in response.headers:
        tries = response.request.extensions.setdefault(_TRIES, 0)
        response.request.extensions[_TRIES] += 1
        response.headers["Retry-After"] = str(FIRST_PAUSE * GROWTH**tries)


async def take(client: PrefectClient, names: Sequence[str]) -> UUID | None:
    """A lease on one place of each limit; None where one has none free. Raises what Prefect's client raises.

    Limits that are not there hold nobody up. Who is cancelled gives back what he has asked for.
    """
    ask = partial(client.increment_concurrency_slots_with_lease, [*names], 1, "concurrency", LEASE_SECONDS)
    asked = asyncio.ensure_future(_answered(ask))
    try:
        answer = await asyncio.shield(asked)
    except PrefectHTTPStatusError as error:
        if error.response.status_code == HTTPStatus.LOCKED:
            return None
        raise
    except asyncio.CancelledError:
        with suppress(Exception):
            async with asyncio.timeout(CANCEL_SECONDS):
                await give_back(client, _lease_of(await asked))
        raise
    return _lease_of(answer)


async def give_back(client: PrefectClient, lease: UUID) -> None:
    """End a lease; one that has ended already is no error."""
    await _answered(partial(client.release_concurrency_slots_with_lease, lease))


async def _answered(ask: Callable[[], Awaitable[Response]]) -> Response:
    for _ in range(ROUNDS - 1):
        try:
            return await ask()
        except PrefectHTTPStatusError as error:
            if error.response.status_code != HTTPStatus.SERVICE_UNAVAILABLE:
                raise
    return await ask()


@asynccontextmanager
async def kept(client: PrefectClient, lease: UUID) -> AsyncIterator[None]:
    """Renew a lease while the block lasts. One that cannot be renewed is a warning: the work goes on."""
    renewing = asyncio.create_task(_renew(client, lease))
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.wait([renewing])


async def _renew(client: PrefectClient, lease: UUID) -> None:
    while True:
        await asyncio.sleep(RENEW_SECONDS)
        try:
            await client.renew_concurrency_lease(lease, LEASE_SECONDS)
        except Exception as error:
            log.warning("a place of the Prefect server's limits may go to another: its lease %s: %s", lease, error)


def _lease_of(answer: Response) -> UUID:
    return UUID(answer.json()["lease_id"])
