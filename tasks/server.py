"""Whether a Prefect server answers, without loading Prefect."""

from __future__ import annotations

import urllib.error
import urllib.request

HEALTH_SECONDS = 3.0


def answers(url: str) -> bool:
    """Whether a server answers at the API address `url`; one that asks for credentials does, too."""
    if not url.startswith(("http://", "https://")):
        return False
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=HEALTH_SECONDS):  # noqa: S310 (checked above)
            return True
    except urllib.error.HTTPError:
        return True  # something answers, and may want credentials: let Prefect say
    except (urllib.error.URLError, OSError):
        return False
