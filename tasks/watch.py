"""Looking at the whole fleet, and telling people: one engine call each."""

from __future__ import annotations

import logging
import math
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from prefect import task
from prefect.events import emit_event

from tasks.control import engine_of
from tasks.failures import failed_work
from tasks.retrying import RETRIED
from tasks.rooms import HOT, Rooms, rooms_of
from vmcellar.catalog.catalog import Catalog
from vmcellar.catalog.conditions import Condition, conditions, worst_first
from vmcellar.catalog.databases import database_of
from vmcellar.catalog.metrics import standing
from vmcellar.catalog.notices import Notice, Notices
from vmcellar.config import find_config, load_config
from vmcellar.errors import VmcellarError
from vmcellar.repository import layout

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from apprise import Apprise

    from vmcellar.config.model import Config
    from vmcellar.repository.repository import Repository

log = logging.getLogger(__name__)

BEGAN, OVER = "vmcellar.condition.began", "vmcellar.condition.over"
"""The events that automations listen for."""
KIND, JOB = "vmcellar.kind", "vmcellar.job"
"""Labels of their resource."""
LATE, UNPROVEN = "RPO", "unproven"
"""Kinds, as the keys of conditions have them."""
PING_SECONDS = 10.0
_KINDS = {"critical": "failure", "warning": "warning", "info": "success"}


def history(config: str) -> Catalog:
    """The catalog without the repository, which may be away when people must be told so."""
    return Catalog(database_of(settings_of(config)), "")


def settings_of(config: str) -> Config:
    """The configuration of a flow's parameters."""
    return load_config(find_config(Path(config) if config else None))


@task(name="look", **RETRIED)
def look(config: str) -> list[Condition]:
    """What is wrong now; notes what began and what ended since the last look. Needs no repository that answers."""
    settings, catalog, now = settings_of(config), history(config), time.time()
    notices = Notices(settings.state)
    rooms, gone = _rooms(config, catalog, now)
    rules = settings.maintenance
    within = rules.prove_within if rules.prove else math.inf
    stand = standing(catalog)
    stand["doubted"] = [row for row in stand["doubted"] if row["point_id"] not in gone]
    of_vms = conditions(stand, settings.backups, now, within)
    found = worst_first([*of_vms, *rooms.conditions(notices.holding()), *failed_work(settings.state)])
    began, ended = notices.look(found, now, [each.describe() for each in settings.notify])
    for each in began:
        _emit(BEGAN, each.key, each.severity, each.text, each.job)
    for key, told in ended.items():
        _emit(OVER, key, told.severity, told.text)
    return found


def _rooms(config: str, catalog: Catalog, now: float) -> tuple[Rooms, Collection[str]]:
    """What the repository tells, and points that evidence speaks against and that are gone."""
    try:
        repository = engine_of(config).repository
        return rooms_of(repository), _note_gone(repository, catalog, now)
    except VmcellarError as error:
        return Rooms(away={HOT: error.message}), ()


@task(name="notify", **RETRIED)
def notify(config: str) -> tuple[int, int]:
    """Tell every receiver of `notify:` what it has not been told; how many notices went, and how many wait.

    A receiver that is down is asked again by the next run; nothing is lost, and no run fails for it.
    """
    settings = settings_of(config)
    if not settings.notify:
        return 0, 0
    receivers = _receivers(settings)
    return Notices(settings.state).send(lambda notice, name: _deliver(receivers, name, notice))


@task(name="ping", **RETRIED)
def ping(config: str) -> bool:
    """Say to `ping:`, as healthchecks.io has it, that the watch ran; silence is what raises the alarm there."""
    settings = settings_of(config)
    if settings.ping is None:
        return False
    try:
        answer = httpx.get(settings.ping.read().decode().strip(), timeout=PING_SECONDS)
        if not answer.is_success:
            log.warning("the receiver of pings answered with %d", answer.status_code)
        return answer.is_success
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        log.warning("the receiver of pings did not answer: %s", type(error).__name__)  # the URL is a secret
        return False


def _note_gone(repository: Repository, catalog: Catalog, now: float) -> list[str]:
    """Points against which evidence speaks and that were pruned since are nobody's worry any more."""
    own = {row["point_id"] for row in standing(catalog)["doubted"] if row["repository"] == repository.id.hex()}
    gone = [point for point in own if not repository.tier.exists(layout.point_key(point))]
    if gone:
        catalog.note_gone(gone, now)
    return gone


def _emit(event: str, key: str, severity: str, text: str, job: str = "") -> None:
    """For automations; people are told by `notify`. `vmcellar.kind` is what the key says beside the VM's name."""
    vm, _, kind = key.rpartition(": ")
    resource = {
        "prefect.resource.id": f"vmcellar.condition.{key}",
        KIND: kind,
        "vmcellar.severity": severity,
        **({"vmcellar.vm": vm} if vm else {}),
        **({JOB: job} if job else {}),
    }
    emit_event(event=event, resource=resource, payload={"text": text})


def _receivers(settings: Config) -> dict[str, Apprise | None]:
    """By the place of their address, which is all that may be said of them; None where there is no address."""
    made: dict[str, Apprise | None] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the hundred services' modules that apprise tries to load
        import apprise  # noqa: PLC0415  (half a second, where somebody is to be told)

        for reference in settings.notify:
            made[reference.describe()] = one = apprise.Apprise()
            try:
                known = one.add(reference.read().decode().strip())
            except (VmcellarError, UnicodeDecodeError) as error:
                known = False
                log.error("notify: %s", getattr(error, "message", f"{reference.describe()} holds no text"))
            if not known:
                made[reference.describe()] = None
                log.error("notify: what is in %s is no address that apprise knows", reference.describe())
    return made


def _deliver(receivers: Mapping[str, Apprise | None], name: str, notice: Notice) -> bool:
    """Whether the receiver took it; one that is not configured any more takes all, one without an address none."""
    if name not in receivers:
        return True
    receiver = receivers[name]
    if receiver is None:
        return False
    return bool(receiver.notify(title=notice.title, body=notice.text, notify_type=_KINDS[notice.severity]))
