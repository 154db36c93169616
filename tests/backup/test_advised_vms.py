"""A schedule that was advised for some VMs backs up what the job selects of them when it runs."""

from __future__ import annotations

from typing import Any

import pytest

from flows.backup import selected
from flows.parameters import BackupJob
from vmcellar.backup import selection
from vmcellar.backup.selection import KnownVm, Selection
from vmcellar.config.model import Config

HERE = [KnownVm("db", running=True), KnownVm("web", running=True), KnownVm("off", running=False)]


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "known_vms", lambda *_, **__: HERE)


def run_of(**fields: Any) -> Selection:
    config = Config.model_validate({"backups": [{"name": "all", "domains": ["*", "!web"], "schedule": "0 2 * * *"}]})
    return selected(config, BackupJob.model_validate({"config": "c", "job": "all", **fields}))


def test_one_that_is_off_gone_or_left_out_since_is_treated_as_the_job_has_it() -> None:
    found = run_of(scheduled=True, vms=["db", "off", "web", "gone"])
    assert ([one.vm for one in found.requests], found.off) == (["db"], ("off",))


def test_a_schedule_whose_vms_are_no_more_the_jobs_has_nothing_to_do() -> None:
    assert run_of(scheduled=True, vms=["web", "gone"]) == Selection(())


def test_who_names_vms_gets_them_and_the_rest_of_a_job_is_all_but_those() -> None:
    assert [one.vm for one in run_of(vms=["web"]).requests] == ["web"]
    assert run_of(scheduled=True, except_vms=["db"]) == Selection((), ("off",))
