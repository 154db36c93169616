"""Whether a Prefect server answers, without loading Prefect."""

from __future__ import annotations

import ssl
import time
import urllib.error
import urllib.request
from http.client import HTTPException

HEALTH_SECONDS = 3.0
LOOK_SECONDS = 1.0
PATIENCE = 8.0
"""Seconds after which a silent server is lost. Prefect itself would try for a minute per request, and for ten seconds
per event when the process ends."""


def answers(url: str) -> bool:
    """Whether a server answers at the API address `url`; one that asks for credentials does, too. At an address that is
    none, or where something else than HTTP is spoken, none does.
    """
    if not url.startswith(("http://", "https://")):
        return False
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=HEALTH_SECONDS):  # noqa: S310 (checked above)
            return True
    except urllib.error.HTTPError:
        return True  # something answers, and may want credentials: let Prefect say
    except urllib.error.URLError as error:
        return isinstance(
            error.reason, ssl.SSLError
        )  # whether its certificate is to be trusted, Prefect's settings say
    except (OSError, ValueError, HTTPException):
        return False


def stays_silent(url: str, seconds: float) -> bool:
    """Whether no server answers at `url` now, nor at any look in the next `seconds`."""
    end = time.monotonic() + seconds
    while not answers(url):
        if time.monotonic() >= end:
            return True
        time.sleep(LOOK_SECONDS)
    return False
