"""`watch_fleet` against a real server: it tells by real e-mail and webhook, and waits for receivers that are down."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from prefect import tags
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun
from prefect.events import emit_event
from prefect.states import Failed

import tasks.watch
from deployments import registration
from deployments.wanted import wanted
from flows.parameters import Watch
from flows.watch import watch_fleet
from lab.waiting import wait_for
from tasks.evidence import UNVERIFIED
from tests.flows.conftest import CellarFactory
from tests.flows.seen import Seen
from tests.monitoring.test_metrics import HOUR, START, free_port, point, run
from tests.proof.cellar import Cellar
from vmcellar.catalog import conditions

pytestmark = pytest.mark.prefect


@dataclass
class Receivers:
    """A real SMTP server and a real HTTP server on loopback; what they took."""

    mails: list[Any] = field(default_factory=list)
    posts: list[dict[str, Any]] = field(default_factory=list)
    chats: list[dict[str, Any]] = field(default_factory=list)
    pings: list[str] = field(default_factory=list)

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802, ARG002  (aiosmtpd's name)
        self.mails.append(message_from_bytes(envelope.content))
        return "250 OK"

    @contextmanager
    def smtp(self, port: int) -> Iterator[None]:
        controller = Controller(self, hostname="127.0.0.1", port=port)
        controller.start()
        try:
            yield
        finally:
            controller.stop()

    @contextmanager
    def http(self) -> Iterator[int]:
        receivers = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                taken = receivers.chats if self.path.startswith("/hooks/") else receivers.posts
                taken.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self._ok()

            def do_GET(self) -> None:
                receivers.pings.append(self.path)
                self._ok()

            def _ok(self) -> None:
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def test_people_are_told_by_mail_and_webhook_and_receivers_that_are_down_are_waited_for(
    seen: Seen, make_cellar: CellarFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apprise.NotifyBase.request_rate_per_sec", 0)  # apprise waits 5.5 s between two mails
    monkeypatch.setattr(conditions, "FREE_LEAST", 0)
    receivers, port = Receivers(), free_port()
    events: list[Any] = []
    monkeypatch.setattr(tasks.watch, "emit_event", lambda **event: events.append(event))
    with receivers.http() as web:
        addresses = {
            "mail": f"mailto://127.0.0.1:{port}?from=vmcellar@example.test&to=ops@example.test&mode=insecure",
            "hook": f"json://127.0.0.1:{web}/alerts",
            "chat": f"mmost://127.0.0.1:{web}/3ccdd113474722377935511fc85d3dd4",  # Mattermost's hooks are Slack's
            "ping": f"http://127.0.0.1:{web}/ping/abc",
        }
        for name, address in addresses.items():
            (tmp_path / name).write_text(address)
        people = [{"file": str(tmp_path / name)} for name in ("mail", "hook", "chat")]
        cellar = make_cellar(notify=people, ping={"file": str(tmp_path / "ping")})
        cellar.engine.catalog.add([run("r1", "web", 0, "failed")])
        down = watch(cellar)
        with receivers.smtp(port):
            up, again = watch(cellar), watch(cellar)
    assert (down["told"], down["waiting"]) == (4, 2), "nobody takes mail yet"
    assert (up["told"], up["waiting"]) == (2, 0)
    assert (again["told"], again["waiting"]) == (0, 0)
    expected = ["vmcellar: web: backup failed", "vmcellar: web: no point"]
    assert sorted(str(mail["Subject"]) for mail in receivers.mails) == expected
    assert sorted(post["title"] for post in receivers.posts) == expected, "once each, though the mail was down"
    assert sorted(chat["text"].splitlines()[0].strip("# *") for chat in receivers.chats) == expected
    assert receivers.pings == ["/ping/abc"] * 3
    told = [(event["event"], event["resource"]["vmcellar.vm"], event["resource"]["vmcellar.kind"]) for event in events]
    began = "vmcellar.condition.began"
    assert sorted(told) == [(began, "web", "backup failed"), (began, "web", "no point")], "once each"
    report = str(seen.artifacts(seen.flow_run("watch the fleet"))["fleet"].data)
    assert "# 0 of 1 VMs have a verified point, 2 things are wrong" in report
    assert "| web |" in report


def test_a_failed_backup_and_bad_evidence_are_looked_at_at_once(seen: Seen) -> None:
    """By the automations that come with the deployment; each host looks at its own."""
    placed = [
        (where, each)
        for where in ("kvm3", "kvm4")
        for each in wanted(None, where)
        if each.flow.name in ("backup-vm", "watch-fleet")
    ]
    identity = {(each.flow.name, where): asyncio.run(registration.put(each)) for where, each in placed}

    def looks(where: str) -> list[FlowRun]:
        only = FlowRunFilterDeploymentId(any_=[identity["watch-fleet", where]])
        return seen.client.read_flow_runs(flow_run_filter=FlowRunFilter(deployment_id=only))

    try:
        parameters = {"request": {"vm": "web1"}}
        backup = seen.client.create_flow_run_from_deployment(identity["backup-vm", "kvm3"], parameters=parameters)
        seen.client.set_flow_run_state(backup.id, Failed(message="no such VM"), force=True)
        wait_for(lambda: len(looks("kvm3")) == 1, "a look after the failure")
        tag = {"prefect.resource.id": "prefect.tag.vmcellar-kvm3", "prefect.resource.role": "tag"}
        emit_event(event=UNVERIFIED, resource={"prefect.resource.id": "vmcellar.point.1"}, related=[tag])
        wait_for(lambda: len(looks("kvm3")) == 2, "a look after the evidence")
        assert {str(run.parameters) for run in looks("kvm3")} == {"{'request': {}}"}
        assert looks("kvm4") == []
    finally:
        for deployment in identity.values():
            seen.client.delete_deployment(deployment)
        for automation in [one for _, each in placed for one in each.automations]:
            (made,) = seen.client.read_automations_by_name(automation.name)
            seen.client.delete_automation(made.id)


def test_what_is_late_is_backed_up_and_what_is_unproven_proven_at_once(seen: Seen, make_cellar: CellarFactory) -> None:
    """Once each, however many VMs are, and not again while they stay so; by their own host and job alone."""
    jobs = [{"name": name, "rpo": "26h", "schedule": "0 2 * * *"} for name in ("nightly", "other")]
    rules = {"prove": "0 3 * * *", "prove_minutes": 45, "prove_within": "10d"}
    cellar = make_cellar(backups=jobs, maintenance=rules)
    now = int((time.time() - START) // HOUR)
    for vm in ("web", "db"):
        cellar.engine.catalog.add([run(vm, vm, now - 27, "done"), point(vm, now - 27, verified=True)])
    acting = ("backup-job", "verify-restores", "watch-fleet")
    placed = {
        (each.full_name.partition("@")[0].partition("/late")[0], where): each
        for where in ("late2", "late3")
        for each in wanted(cellar.config, where)
        if each.automations
    }
    assert {each.flow.name for each in placed.values()} == {*acting}
    identity = {key: asyncio.run(registration.put(each)) for key, each in placed.items()}

    def runs() -> dict[Any, list[dict[str, Any]]]:
        found = {}
        for key, deployment in identity.items():
            only = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment]))
            found[key] = [each.parameters["request"] for each in seen.client.read_flow_runs(flow_run_filter=only)]
        return {key: each for key, each in found.items() if each}

    late = {("backup-job/nightly", "late2"): [{"job": "nightly", "scheduled": True}]}
    unproven = {("verify-restores", "late2"): [{"minutes": 45}]}
    try:
        with tags("vmcellar-late2"):
            for _ in range(2):
                assert watch(cellar)["conditions"] == 2
            wait_for(lambda: runs() == late, "a run of the job")
            cellar.engine.catalog.add([point(vm, now - 11 * 24, verified=True) for vm in ("app", "mail")])
            for _ in range(2):
                assert watch(cellar)["conditions"] == 4
            wait_for(lambda: runs() == late | unproven, "proofs")
        tag = {"prefect.resource.id": "prefect.tag.vmcellar-late2", "prefect.resource.role": "tag"}
        emit_event(event=UNVERIFIED, resource={"prefect.resource.id": "vmcellar.point.2"}, related=[tag])
        looks: dict[Any, list[dict[str, Any]]] = {("watch-fleet", "late2"): [{}]}
        wait_for(lambda: runs() == late | unproven | looks, "a look, which was asked for after all the others")
    finally:
        for deployment in identity.values():
            seen.client.delete_deployment(deployment)
        for automation in [one for each in placed.values() for one in each.automations]:
            (made,) = seen.client.read_automations_by_name(automation.name)
            seen.client.delete_automation(made.id)


def watch(cellar: Cellar) -> dict[str, int]:
    return asyncio.run(watch_fleet(Watch(config=str(cellar.file))))
