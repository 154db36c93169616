"""`prune`, `pin`, `gc`, `rebuild-index` and the leases in `locks`, on a real repository."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cellar, Cli
from vmcellar.config import load_config
from vmcellar.repository import leases
from vmcellar.repository.repository import Repository


def points(cellar: Cellar) -> set[str]:
    return {path.name for path in (cellar.folder / "repo" / "points").iterdir()}


@pytest.mark.usefixtures("later")
def test_prune_by_options_shows_why_and_drops(cli: Cli, cellar: Cellar) -> None:
    simulated = cli("prune", "--keep-last", "1", "--simulate")
    assert simulated.code == 0, simulated.err
    assert any(cellar.first.id in line and "drop" in line for line in simulated.out.splitlines())
    assert "nothing was changed" in simulated.err
    assert len(points(cellar)) == 3
    entries = json.loads(cli("prune", "--keep-last", "1", "--json").out)
    assert {entry["id"]: (entry["keep"], entry["dropped"]) for entry in entries} == {
        cellar.first.id: (False, True),
        cellar.second.id: (True, False),
        cellar.other.id: (True, False),
    }
    assert points(cellar) == {cellar.second.id, cellar.other.id}
    assert cli("verify", "--all", "--deep").code == 0


@pytest.mark.usefixtures("later")
def test_prune_without_options_follows_the_jobs(cli: Cli, cellar: Cellar) -> None:
    assert all(entry["keep"] for entry in json.loads(cli("prune", "--dry-run", "--json").out))
    with cellar.config.open("a") as file:
        file.write('backups: [{name: web, domains: ["web*"], retention: {daily: 1}}]\n')
    entries = {entry["id"]: entry for entry in json.loads(cli("prune", "--json").out)}
    assert not entries[cellar.first.id]["keep"]
    assert entries[cellar.other.id]["why"] == "no job selects its VM"
    assert points(cellar) == {cellar.second.id, cellar.other.id}


def test_prune_of_one_vm_and_bad_use(cli: Cli, cellar: Cellar) -> None:
    entries = json.loads(cli("prune", "db1", "--keep-last", "1", "--dry-run", "--json").out)
    assert [entry["id"] for entry in entries] == [cellar.other.id]
    for arguments in (("--keep-within", "soon"), ("--keep-last", "-1"), ("--keep-within", "1d", "--keep-last", "0"),
                      ("--keep-last", "0"), ("--keep-last", "0", "--keep-daily", "0")):  # fmt: skip
        assert cli("prune", *arguments).code == 2
    assert len(points(cellar)) == 3


@pytest.mark.usefixtures("later")
def test_a_pinned_point_stays(cli: Cli, cellar: Cellar) -> None:
    assert cli("pin", cellar.first.id, "--note", "before the upgrade").code == 0
    assert "before the upgrade" in cli("pin").out
    assert json.loads(cli("pin", "--json").out)[0]["point"] == cellar.first.id
    assert cli("pin", cellar.first.id).code == 1
    assert cli("prune", "--keep-last", "1").code == 0
    assert cellar.first.id in points(cellar)
    assert cli("pin", cellar.first.id, "--remove").code == 0
    assert cli("pin", cellar.first.id, "--remove").code == 1
    assert cli("prune", "--keep-daily", "1").code == 0
    assert cellar.first.id not in points(cellar)
    assert cli("pin", "nobody@latest").code == 1
    assert cli("pin", "--remove").code == 2


def test_gc_marks_what_prune_left(cli: Cli, cellar: Cellar) -> None:
    (cellar.folder / "repo" / "points" / cellar.other.id).unlink()
    packs = sorted((cellar.folder / "repo" / "data").rglob("*"))
    report = json.loads(cli("gc", "--dry-run", "--json").out)
    assert report["marked"]
    assert cli("gc").code == 0
    waiting = cli("gc")
    assert "waiting: " in waiting.out
    assert sorted((cellar.folder / "repo" / "data").rglob("*")) == packs
    assert cli("gc", "--grace", "soon").code == 2
    assert cli("verify", "--all", "--deep").code == 0


def test_rebuild_index_mends_a_damaged_index(cli: Cli, cellar: Cellar) -> None:
    parts = sorted((cellar.folder / "repo" / "index").iterdir())
    parts[0].chmod(0o600)
    parts[0].write_bytes(parts[0].read_bytes()[:-1])
    for cache in (cellar.folder / "state" / "cache").glob("index-*"):
        cache.unlink()
    assert cli("list").code == 1
    dry = cli("rebuild-index", "--dry-run")
    assert (dry.code, "would be" in dry.out) == (0, True)
    assert parts[0].exists()
    done = cli("rebuild-index", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["packs"] > 0
    assert not parts[0].exists()
    assert cli("verify", "--all", "--deep").code == 0


def test_rebuild_index_keeps_what_only_the_index_knows(cli: Cli, cellar: Cellar) -> None:
    """A pack whose table of contents is damaged: its objects are whole, and the old parts say where they lie."""
    pack = max((cellar.folder / "repo" / "data").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    data = bytearray(pack.read_bytes())
    data[-1] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    assert cli("rebuild-index").code == 1
    for point in (cellar.first, cellar.second):
        target = cellar.folder / point.id
        assert cli("restore", point.id, "--to", target, "--format", "raw").code == 0
        assert (target / "vda.raw").read_bytes() == cellar.disks[point.id]


def test_locks_show_leases(cli: Cli, cellar: Cellar) -> None:
    assert cli("locks").out == ""
    repository = Repository.open(load_config(cellar.config))
    with repository.working_on("web1"):
        assert "backup web1" in cli("locks").out
        (entry,) = json.loads(cli("locks", "--json").out)
        assert (entry["what"], entry["stale"]) == ("backup web1", False)
    repository.close()
    assert json.loads(cli("locks", "--json").out) == []


def test_no_name_of_a_vm_in_any_object(cli: Cli, cellar: Cellar) -> None:
    cli("pin", cellar.first.id, "--note", "for-the-auditors")
    repository = Repository.open(load_config(cellar.config))
    with repository.working_on("web1"):
        for path in Path(cellar.folder / "repo").rglob("*"):
            if path.is_file():
                assert not any(word in path.read_bytes() for word in (b"web1", b"for-the-auditors", b"backup "))
    repository.close()


def test_consolidate_says_what_it_would_do_and_harms_nothing(cli: Cli, cellar: Cellar) -> None:
    before = points(cellar)
    told = json.loads(cli("consolidate", "--dry-run", "--json").out)
    assert (told["dry_run"], told["old"]) == (True, [])
    done = cli("consolidate")
    assert done.code == 0, done.err
    assert done.out.startswith("rewritten: 0 of ")
    assert cli("verify", "--all", "--deep").code == 0
    assert points(cellar) == before


HOLDER = """
import sys
from pathlib import Path
from vmcellar.config import load_config
from vmcellar.repository import leases
from vmcellar.repository.repository import Repository
repository = Repository.open(load_config(Path(sys.argv[1])))
with repository.working_on(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


def start_holder(cellar: Cellar, vm: str) -> subprocess.Popen[str]:
    """Another process that works on a VM until its input ends."""
    made = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(cellar.config), vm],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert made.stdout is not None
    assert made.stdout.readline() == "held\n"
    return made


def test_locks_show_who_of_several_processes_lives_and_the_dead_go_with_gc(cli: Cli, cellar: Cellar) -> None:
    with start_holder(cellar, "web1") as living, start_holder(cellar, "db1") as dying:
        dying.kill()
        dying.wait()
        shown = {entry["what"]: entry for entry in json.loads(cli("locks", "--json").out)}
        assert {what: (entry["pid"], entry["stale"]) for what, entry in shown.items()} == {
            "backup web1": (str(living.pid), False),
            "backup db1": (str(dying.pid), True),
        }
        assert shown["backup web1"]["boot"] == leases.boot()
        assert cli("gc").code == 0
        (entry,) = json.loads(cli("locks", "--json").out)
        assert (entry["what"], entry["stale"]) == ("backup web1", False)
        living.communicate("")
        assert living.returncode == 0
    assert json.loads(cli("locks", "--json").out) == []
