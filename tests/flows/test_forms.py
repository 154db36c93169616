"""The forms of all flows as their deployments publish them: names, help, order, defaults, what is refused at once."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel, ValidationError

from deployments.wanted import FORMS, OF_A_PLACE, wanted
from flows import parameters
from flows.parameters import BackupVm, RebalanceTiers, Upkeep
from tests.flows.conftest import HERE

MODELS = {
    name: each for name, each in vars(parameters).items() if isinstance(each, type) and issubclass(each, BaseModel)
}


def form(flow: Any) -> dict[str, Any]:
    """The model of a flow's one parameter, as the server gets it."""
    (model,) = parameter_schema(flow).model_dump()["definitions"].values()
    return dict(model)


def positions(flow: Any) -> list[str]:
    """The fields in the order that the UI shows."""
    fields = form(flow)["properties"]
    return sorted(fields, key=lambda name: fields[name]["position"])


@pytest.mark.parametrize("flow", FORMS, ids=lambda flow: flow.name)
def test_every_field_has_a_name_help_and_a_place(flow: Any) -> None:
    model = form(flow)
    fields = MODELS[model["title"]].model_fields
    assert model["description"]
    for name, field in fields.items():
        assert field.title, f"{name}: what Prefect makes of the name is no name for people"
        assert field.description, name
        assert field.description[-1] not in ".;,", name
    shown = positions(flow)
    assert len({model["properties"][name]["position"] for name in shown}) == len(fields)
    assert shown[-1] == "config", "what is the same for all runs of a host comes last"
    required = model.get("required", [])
    assert shown[: len(required)] == required, "what has to be filled in comes first"


@pytest.mark.parametrize("flow", FORMS, ids=lambda flow: flow.name)
def test_a_quick_run_of_a_deployment_has_a_request_or_says_what_is_missing(flow: Any) -> None:
    (deployment,) = [each for each in wanted(None, "kvm20") if each.flow is flow]
    model = MODELS[form(flow)["title"]]
    missing = set(form(flow).get("required", []))
    request = deployment.parameters["request"]
    if missing:
        with pytest.raises(ValidationError) as raised:
            model.model_validate(request)
        assert {error["loc"] for error in raised.value.errors()} == {(name,) for name in missing}
        return
    made = model.model_validate(request)
    assert ("where" in request) == ("where" in model.model_fields) == (flow in OF_A_PLACE)
    assert getattr(made, "where", "kvm20") == "kvm20", "not the schedules of another place"


def test_prefects_own_file_prefills_the_same() -> None:
    document = yaml.safe_load((HERE.parents[1] / "deployments" / "prefect.yaml").read_text())
    found = {each["entrypoint"]: each["parameters"] for each in document["deployments"]}
    expected = {f"{each.flow.fn.__module__}.{each.flow.fn.__name__}": each.parameters for each in wanted(None, "host")}
    assert found == expected


def test_choices_are_all_that_is_taken() -> None:
    for name in parameters.COMPRESSIONS:
        assert BackupVm(vm="web1", compression=name).compression == name
    assert form(FORMS[0])["properties"]["compression"]["enum"] == parameters.COMPRESSIONS


@pytest.mark.parametrize(
    "make",
    [
        lambda: BackupVm(vm="web1", compression="zstd:77"),
        lambda: RebalanceTiers(rate="100"),
        lambda: RebalanceTiers(rate="fast"),
        lambda: Upkeep(grace="tomorrow"),
        lambda: Upkeep(grace=""),
        lambda: parameters.Schedules(where=""),
    ],
)
def test_what_the_engine_would_refuse_is_refused_before_a_run(make: Any) -> None:
    with pytest.raises(ValidationError):
        make()


def test_a_rate_is_bytes_in_the_end() -> None:
    assert RebalanceTiers(rate="2MiB/s").bytes_per_second == 2 << 20
    assert RebalanceTiers().bytes_per_second is None
