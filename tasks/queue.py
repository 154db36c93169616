"""What waits and works at the Prefect server, as metrics of `vmcellar metrics`; without loading Prefect."""

from __future__ import annotations

import base64
import json
import os
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http import HTTPStatus
from http.client import HTTPException
from ssl import SSLError
from typing import Any
from urllib.error import HTTPError

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

SECONDS = 3.0
TAG = "vmcellar"

Ask = Callable[[str, dict[str, Any]], Any]
"""Posts a question to a path of the API and gives the answer; OSError or ValueError where there is none."""


class QueueCollector(Collector):
    """Asks the server when Prometheus asks. Any thread. One that does not answer is `vmcellar_prefect_up 0`; one that
    answers with a refusal is up, without figures.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def collect(self) -> Iterator[Metric]:
        """All metrics of one scrape."""
        up = GaugeMetricFamily("vmcellar_prefect_up", "1 when the Prefect server answered.")
        found: list[Metric] = []
        try:
            found = [self._runs(), *self._places()]
            answered = True
        except (OSError, ValueError, LookupError, TypeError, HTTPException) as error:
            answered = _refusal(error)
        up.add_metric([], float(answered))
        yield up
        yield from found

    def _runs(self) -> Metric:
        made = GaugeMetricFamily(
            "vmcellar_flow_runs",
            "Runs of vmcellar's deployments: waiting are those that are due and that nobody has taken yet.",
            labels=["state"],
        )
        due = {"expected_start_time": {"before_": datetime.now(UTC).isoformat()}}
        asked: tuple[tuple[str, str, dict[str, Any]], ...] = (
            ("waiting", "SCHEDULED", due),
            ("pending", "PENDING", {}),
            ("running", "RUNNING", {}),
        )
        for name, state, more in asked:
            wanted = {"tags": {"all_": [TAG]}, "state": {"type": {"any_": [state]}}, **more}
            made.add_metric([name], float(self._ask("flow_runs/count", {"flow_runs": wanted})))
        return made

    def _places(self) -> Iterator[Metric]:
        limits = [each for each in self._ask("v2/concurrency_limits/filter", {}) if each["name"].startswith(f"{TAG}-")]
        for name, what, key in (
            ("limit_places", "VMs that may be backed up at once, by limit of a host or of what hosts share.", "limit"),
            ("limit_places_taken", "How many of these places are taken.", "active_slots"),
        ):
            made = GaugeMetricFamily(f"vmcellar_{name}", what, labels=["limit"])
            for each in limits:
                made.add_metric([each["name"]], float(each[key]))
            yield made


def _refusal(error: Exception) -> bool:
    """Whether a server is there that does not know us, or that we do not know."""
    if isinstance(error, HTTPError):
        return error.code < HTTPStatus.INTERNAL_SERVER_ERROR
    return isinstance(getattr(error, "reason", None), SSLError)


def asking(url: str) -> Ask:
    """Of the server at the API address `url`, with the credentials of PREFECT_API_AUTH_STRING."""
    credentials = os.environ.get("PREFECT_API_AUTH_STRING", "").encode()
    headers = {"Content-Type": "application/json"}
    if credentials:
        headers["Authorization"] = f"Basic {base64.b64encode(credentials).decode()}"

    def ask(path: str, question: dict[str, Any]) -> Any:
        request = urllib.request.Request(  # noqa: S310  (the operator's own address)
            f"{url.rstrip('/')}/{path}", json.dumps(question).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310
            return json.load(answer)

    return ask
