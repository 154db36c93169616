"""Words to the analysis commands that mean nothing, or two things, and a catalog that knows nothing yet."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Cellar, Cli
from vmcellar.config.load import load_config
from vmcellar.policy.timetable import read_advised

MISUSES = (
    (["forecast", "--sample", "-1"], "--sample"),
    (["forecast", "--sample", "1", "--history", "x"], "--history and --sample are two histories"),
    (["forecast", "--history", "."], ".: Is a directory"),
    (["anomalies", "--keep-pins"], "--keep-pins goes with --judged"),
    (["anomalies", "--judged", "fine"], "--judged takes your words about one VM"),
    (["anomalies", "--days", "nan"], "--days"),
    (["advise", "--apply", "--undo"], "--apply and --undo cannot be had at once"),
    (["advise", "--gains", "--storage"], "--gains and --storage cannot be had at once"),
    (["advise", "--undo", "--sample", "1"], "--undo goes by this host's own history"),
    (["advise", "--gains", "--rpo", "soon"], "--rpo soon"),
    (["what-if"], "--keep"),
    (["what-if", "--keep", "-3d"], "-3d: a time is a number"),
    (["what-if", "--keep", "30d", "--tiers", ""], "a tier without a name"),
    (["what-if", "--keep", "30d", "--tiers", "hot,hot:3d"], "a tier is named twice"),
    (["what-if", "--keep", "30d", "--tiers", "hot:3d"], "the first tier has no age"),
    (["what-if", "--keep", "30d", "--tiers", "hot,moon:3d"], "no price is known of moon"),
    (["what-if", "--keep", "30d", "--prices", "=1"], "names no tier"),
    (["what-if", "--keep", "30d", "--prices", "hot=-1"], "not a price"),
    (["what-if", "--keep", "30d", "--prices", "hot=inf"], "not a price"),
)
KNOWS_NOTHING: tuple[tuple[list[str], int, dict[str, object] | None], ...] = (
    (["forecast"], 0, {"disks": [], "vms": [], "next_runs": [], "refused": []}),
    (["anomalies"], 0, {"anomalies": [], "consequences": []}),
    (["advise", "--rpo", "8h"], 0, {"changes": [], "applied": False}),
    (["advise", "--gains"], 0, {"gains": [], "storage": []}),
    (["forecast", "web1"], 1, None),
    (["what-if", "--keep", "30d"], 1, None),
)


@pytest.mark.parametrize(
    ("words", "told"), MISUSES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_what_means_nothing_is_said_to_and_does_nothing(cli: Cli, cellar: Cellar, words: list[str], told: str) -> None:
    done = cli(*words)
    assert (done.code, done.out) == (2, "")
    assert told in done.err
    assert "Traceback" not in done.err
    assert read_advised(load_config(cellar.config).state) == ()


@pytest.mark.parametrize(("words", "code", "told"), KNOWS_NOTHING, ids=str)
@pytest.mark.usefixtures("cellar")
def test_a_catalog_that_knows_nothing_is_no_trouble(
    cli: Cli, words: list[str], code: int, told: dict[str, object] | None
) -> None:
    plain, as_json = cli(*words), cli(*words, "--json")
    assert (plain.code, as_json.code) == (code, code)
    assert plain.out == "", "no table without rows"
    if told is None:
        assert json.loads(as_json.err.splitlines()[-1])["exit"] == code
    else:
        assert json.loads(as_json.out).items() >= told.items()


def test_advice_that_cannot_be_applied_is_not_told_as_applied(cli: Cli, cellar: Cellar) -> None:
    assert cellar.config.exists()
    done = cli("advise", "--apply", "--json")
    assert (done.code, done.out) == (2, "")
