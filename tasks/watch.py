"""Looking at the whole fleet, and telling people: one engine call each."""

from __future__ import annotations

import logging
import math
import time
import warnings
from typing import TYPE_CHECKING

import httpx
from prefect import task
from prefect.events import emit_event

from tasks.control import engine_of
from tasks.retrying import RETRIED
from vmcellar.catalog.conditions import Condition, conditions
from vmcellar.catalog.metrics import standing
from vmcellar.catalog.notices import Notice, Notices
from vmcellar.repository import layout

if TYPE_CHECKING:
    from apprise import Apprise

    from vmcellar.config.model import Config
    from vmcellar.engine import Engine

log = logging.getLogger(__name__)

BEGAN, OVER = "vmcellar.condition.began", "vmcellar.condition.over"
"""The events that automations listen for."""
PING_SECONDS = 10.0
_KINDS = {"critical": "failure", "warning": "warning", "info": "success"}


@task(name="look", **RETRIED)
def look(config: str) -> list[Condition]:
    """What is wrong now; notes what began and what ended since the last look."""
    engine = engine_of(config)
    now = time.time()
    rules = engine.config.maintenance
    within = rules.prove_within if rules.prove else math.inf
    _note_gone(engine, now)
    found = conditions(standing(engine.catalog), engine.config.backups, now, within)
    began, ended = Notices(engine.config.state).look(found, now, [each.describe() for each in engine.config.notify])
    for each in began:
        _emit(BEGAN, each.key, each.severity, each.text)
    for key, told in ended.items():
        _emit(OVER, key, told.severity, told.text)
    return found


@task(name="notify", **RETRIED)
def notify(config: str) -> tuple[int, int]:
    """Tell every receiver of `notify:` what it has not been told; how many notices went, and how many wait.

    A receiver that is down is asked again by the next run; nothing is lost, and no run fails for it.
    """
    settings = engine_of(config).config
    if not settings.notify:
        return 0, 0
    receivers = _receivers(settings)
    return Notices(settings.state).send(lambda notice, name: _deliver(receivers.get(name), notice))


@task(name="ping", **RETRIED)
def ping(config: str) -> bool:
    """Say to `ping:`, as healthchecks.io has it, that the watch ran; silence is what raises the alarm there."""
    settings = engine_of(config).config
    if settings.ping is None:
        return False
    try:
        return httpx.get(settings.ping.read().decode().strip(), timeout=PING_SECONDS).is_success
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        log.warning("the receiver of pings did not answer: %s", type(error).__name__)  # the URL is a secret
        return False


def _note_gone(engine: Engine, now: float) -> None:
    """Points against which evidence speaks and that were pruned since are nobody's worry any more."""
    doubted = {row["point_id"] for row in standing(engine.catalog)["doubted"]}
    tier = engine.repository.tier
    if gone := [point for point in doubted if not tier.exists(layout.point_key(point))]:
        engine.catalog.note_gone(gone, now)


def _emit(event: str, key: str, severity: str, text: str) -> None:
    """For automations; people are told by `notify`. `vmcellar.kind` is what the key says beside the VM's name."""
    vm, _, kind = key.rpartition(": ")
    resource = {
        "prefect.resource.id": f"vmcellar.condition.{key}",
        "vmcellar.kind": kind,
        "vmcellar.severity": severity,
        **({"vmcellar.vm": vm} if vm else {}),
    }
    emit_event(event=event, resource=resource, payload={"text": text})


def _receivers(settings: Config) -> dict[str, Apprise]:
    """By the place of their address, which is all that may be said of them."""
    made: dict[str, Apprise] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the hundred services' modules that apprise tries to load
        import apprise  # noqa: PLC0415  (half a second, where somebody is to be told)

        for reference in settings.notify:
            one = apprise.Apprise()
            if one.add(reference.read().decode().strip()):
                made[reference.describe()] = one
            else:
                log.error("notify: what is in %s is no address that apprise knows", reference.describe())
    return made


def _deliver(receiver: Apprise | None, notice: Notice) -> bool:
    """Whether the receiver took it; one that is not configured any more takes all."""
    if receiver is None:
        return True
    return bool(receiver.notify(title=notice.title, body=notice.text, notify_type=_KINDS[notice.severity]))
