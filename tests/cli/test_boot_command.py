"""`boot` and `restore --in-place` as a user meets them, where no VM is needed for it."""

from __future__ import annotations

import json
import uuid

import pytest

from tests.cli.conftest import Cellar, Cli
from vmcellar.cli.commands.boot import PIN_NOTE, pin_for_boot, unpin_after_boot
from vmcellar.config.load import load_config
from vmcellar.errors import CancelledError
from vmcellar.repository.repository import Repository
from vmcellar.restore.boot import Booter, BootReport
from vmcellar.restore.boot_journal import Boot, BootJournal, begin, new_entry
from vmcellar.upkeep.pins import pinned


@pytest.mark.parametrize("words", [[], ["web1@latest", "--status"], ["--finish", "a", "--abort", "b"]])
def test_one_thing_at_a_time(cli: Cli, cellar: Cellar, words: list[str]) -> None:
    assert cellar
    refused = cli("boot", *words)
    assert refused.code == 2
    assert "only one" in refused.err


def test_what_was_left_is_shown(cli: Cli, cellar: Cellar) -> None:
    assert "no VM runs from the repository" in cli("boot", "--status").out
    entry = new_entry("web1-now", str(uuid.uuid4()), cellar.first.id, "web1", cellar.folder / "new", ("vda",))
    with begin(cellar.folder / "state", entry):
        assert "being served" in cli("boot", "--status").out
        busy = cli("boot", "--finish", "web1-now")
        assert busy.code == 1
        assert "another process" in busy.err
    shown = cli("boot", "--status")
    assert "--finish web1-now" in shown.out
    assert cellar.first.id in shown.out
    (one,) = json.loads(cli("boot", "--status", "--json").out)
    assert (one["phase"], one["served"]) == ("preparing", False)


def test_an_unknown_name(cli: Cli, cellar: Cellar) -> None:
    assert cellar
    refused = cli("boot", "--finish", "nobody")
    assert refused.code == 1
    assert "no VM nobody runs from the repository" in refused.err


def test_nothing_is_removed_or_overwritten_unasked(cli: Cli, cellar: Cellar) -> None:
    assert cellar
    for words in (["boot", "--abort", "web1-now"], ["restore", "web1@latest", "--in-place"]):
        refused = cli(*words)
        assert refused.code == 2
        assert "--yes" in refused.err


@pytest.mark.parametrize("beside", [["--to", "out"], ["--define", "new"], ["--onto", "x"], ["--disk", "vda"]])
def test_what_does_not_go_with_in_place(cli: Cli, cellar: Cellar, beside: list[str]) -> None:
    assert cellar
    refused = cli("restore", "web1@latest", "--in-place", "--yes", *beside)
    assert refused.code == 2
    assert f"--in-place and {beside[0]}" in refused.err


def test_no_retention_drops_the_point_while_a_vm_needs_it(
    cli: Cli, cellar: Cellar, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pinned() -> list[str]:
        return [pin["note"] for pin in json.loads(cli("pin", "--json").out)]

    def stopped(*_: object) -> BootReport:
        assert len(pinned()) == 1
        raise CancelledError("stopped")

    def finished(_self: object, journal: BootJournal, *_: object) -> BootReport:
        journal.end()
        return BootReport("web1-now", cellar.first.id, "/x", 0.0, 0.0, runs=True)

    entry = new_entry("web1-now", str(uuid.uuid4()), cellar.first.id, "web1", cellar.folder / "new", ("vda",))
    with begin(cellar.folder / "state", entry):
        pass
    monkeypatch.setattr(Booter, "go", stopped)
    cli("boot", "--finish", "web1-now")
    assert pinned() == [f"{PIN_NOTE} web1-now"], "the VM still needs it"
    monkeypatch.setattr(Booter, "go", finished)
    assert cli("boot", "--finish", "web1-now").code == 0
    assert pinned() == []
    with begin(cellar.folder / "state", entry):
        pass
    monkeypatch.setattr(Booter, "go", stopped)
    cli("boot", "--finish", "web1-now")
    assert cli("pin", cellar.first.id, "--note", "mine").code == 0, "whatever else holds it"
    assert sorted(pinned()) == [f"{PIN_NOTE} web1-now", "mine"]
    monkeypatch.setattr(Booter, "go", finished)
    assert cli("boot", "--finish", "web1-now").code == 0
    assert pinned() == ["mine"], "what a user pinned stays pinned"


def test_a_person_removes_the_own_pin_first_and_what_work_holds_when_asked_again(cli: Cli, cellar: Cellar) -> None:
    """Who has forgotten that a VM runs from the point takes nothing from it."""
    repository = Repository.open(load_config(cellar.config))
    pin_for_boot(repository, begun(cellar, "a"))
    assert cli("pin", cellar.first.id, "--note", "mine").code == 0
    removed = cli("pin", cellar.first.id, "--remove")
    assert f"{cellar.first.id} is still held ({PIN_NOTE} a, on " in removed.err
    assert pinned(repository) == {cellar.first.id}
    assert "is not pinned any more" in cli("pin", cellar.first.id, "--remove").err, "as for a host that is lost"
    assert pinned(repository) == set()
    assert cli("pin", cellar.first.id, "--remove").code == 1
    repository.close()


def begun(cellar: Cellar, name: str) -> Boot:
    return new_entry(name, str(uuid.uuid4()), cellar.first.id, "web1", cellar.folder / name, ("vda",))


def test_a_pin_that_another_vm_needs_stays(cellar: Cellar) -> None:
    """Two VMs boot one point, here or on other hosts, also one whose server died: each holds it by itself."""
    config = load_config(cellar.config)
    repository = Repository.open(config)
    here, elsewhere = begun(cellar, "a"), begun(cellar, "b")
    for entry in (here, elsewhere, here):
        pin_for_boot(repository, entry)
    unpin_after_boot(config, repository, here)
    assert pinned(repository) == {cellar.first.id}
    with begin(config.state, elsewhere):
        unpin_after_boot(config, repository, elsewhere)
    assert pinned(repository) == {cellar.first.id}, "it is in the journal: the VM needs it"
    (config.state / "boots" / "b.json").unlink()
    unpin_after_boot(config, repository, elsewhere)
    assert pinned(repository) == set()
    repository.close()
