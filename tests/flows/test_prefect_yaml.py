"""`deployments/prefect.yaml`, for those who know Prefect."""

from __future__ import annotations

from pathlib import Path

import yaml

from deployments.wanted import FORMS

FILE = Path(__file__).parents[2] / "deployments" / "prefect.yaml"


def test_every_flow_is_in_it() -> None:
    named = [each["entrypoint"] for each in yaml.safe_load(FILE.read_text())["deployments"]]
    assert sorted(named) == sorted(f"{flow.fn.__module__}.{flow.fn.__name__}" for flow in FORMS)
