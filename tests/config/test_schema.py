"""The published JSON schema, as an editor's validator takes it: it accepts what the program accepts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.config.test_config import EXAMPLE, FILE
from tests.docs.test_examples import EXAMPLES, whole
from vmcellar.config import parse_config
from vmcellar.config.load import json_schema, shown_config

TOLD = """
backups:
  - {name: a, domains: all, bandwidth: 9MiB/s, retention: 30d}
maintenance: {watch: off, adapt: "off", recover: {interval: 1h}, prove: {rrule: FREQ=DAILY, timezone: Europe/Berlin}}
tiers: {hot: /srv/hot, warm: {storage: "s3://bucket/prefix"}}
"""


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def complaints(validator: Draft202012Validator, text: str) -> Iterator[str]:
    for error in validator.iter_errors(yaml.safe_load(text) or {}):
        yield f"{error.json_path}: {error.message}"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param(EXAMPLE, id="design"),
        pytest.param(TOLD, id="told"),
        *(pytest.param(whole(str(each.values[0])), id=f"docs {each.id}") for each in EXAMPLES),
    ],
)
def test_what_is_valid_is_so_for_editors_and_so_is_what_config_show_prints(
    validator: Draft202012Validator, text: str
) -> None:
    shown = yaml.safe_dump(shown_config(parse_config(text, FILE)))
    assert list(complaints(validator, text)) == []
    assert list(complaints(validator, shown)) == []


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("backups: [{name: a, mode: incrementel}]", "$.backups[0].mode"),
        ("backups: [{name: a, domains: 7}]", "$.backups[0].domains"),
        ("backups: [{name: a, domains: [7]}]", "$.backups[0].domains"),
        ("backups: [{name: a, retension: 30d}]", "$.backups[0]"),
        ("backups: [{name: a b}]", "$.backups[0].name"),
        ("backups: [{}]", "$.backups[0]"),
        ("limits: {vms: 0}", "$.limits.vms"),
        ("maintenance: {watch: true}", "$.maintenance.watch"),
        ("notify: [{fil: x}]", "$.notify[0]"),
        ("key: [file]", "$.key"),
    ],
)
def test_a_mistake_is_underlined_where_it_is(validator: Draft202012Validator, text: str, where: str) -> None:
    assert {complaint.partition(": ")[0] for complaint in complaints(validator, text)} == {where}
