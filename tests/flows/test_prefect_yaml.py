"""`deployments/prefect.yaml`, as those who know Prefect deploy it: by Prefect's own command, to a real server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deployments.wanted import FORMS
from tests.flows.seen import Seen

FILE = Path(__file__).parents[2] / "deployments" / "prefect.yaml"


def test_every_flow_is_in_it() -> None:
    named = [each["entrypoint"] for each in yaml.safe_load(FILE.read_text())["deployments"]]
    assert sorted(named) == sorted(f"{flow.fn.__module__}.{flow.fn.__name__}" for flow in FORMS)


@pytest.mark.prefect
def test_prefect_itself_deploys_it(seen: Seen, environment: dict[str, str], tmp_path: Path) -> None:
    def prefect(*arguments: str) -> None:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    prefect("work-pool", "create", "vmcellar-hosts", "--type", "process")
    prefect("deploy", "--all", "--prefect-file", str(FILE))
    for flow in FORMS:
        made = seen.client.read_deployment_by_name(f"{flow.name}/host")
        assert (made.work_pool_name, made.tags, made.schedules) == ("vmcellar-hosts", ["vmcellar"], [])
        assert made.entrypoint == f"{flow.fn.__module__}.{flow.fn.__name__}"
        assert made.parameter_openapi_schema
        seen.client.delete_deployment(made.id)
