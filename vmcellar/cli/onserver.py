"""Calls of a Prefect server from a command."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from typing import Any, TypeVar

from vmcellar.errors import PermanentError

T = TypeVar("T")


def on_server(request: Coroutine[Any, Any, T]) -> T:
    """The answer; PermanentError that names the server when it refuses or is away."""
    import asyncio

    try:
        return asyncio.run(request)
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("prefect", "httpx", "httpcore"):
            raise
        raise PermanentError(
            f"the Prefect server at {os.environ['PREFECT_API_URL']}: {error}",
            hint="start it, or correct PREFECT_API_URL; what was written stays, and the command may be repeated",
        ) from error
