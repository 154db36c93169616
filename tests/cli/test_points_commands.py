"""`list`, `show`, `restore` and `verify` on a real repository."""

from __future__ import annotations

import io
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from tests.cli.conftest import CHUNK, SIZE, Cellar, Cli
from tests.repository.writing import back_up
from vmcellar.cli.render.points import points_lines, points_table
from vmcellar.config import load_config
from vmcellar.repository import evidence
from vmcellar.repository.repository import Repository
from vmcellar.upkeep.pins import pinned, while_it_waits

LIST_FIELDS = {
    "id", "vm", "time", "kind", "parent", "consistency", "verified",
    "bytes_read", "bytes_changed", "bytes_stored", "disks",
}  # fmt: skip


def test_list_json_has_the_documented_fields(cli: Cli, cellar: Cellar) -> None:
    entries = json.loads(cli("list", "web1", "--json").out)
    assert [entry["id"] for entry in entries] == [cellar.first.id, cellar.second.id]
    assert set(entries[0]) >= LIST_FIELDS
    assert set(entries[0]["disks"][0]) >= {"target", "size", "root"}
    assert [entry["kind"] for entry in entries] == ["full", "incremental"]
    assert entries[1]["parent"] == cellar.first.id
    assert datetime.fromisoformat(entries[0]["time"]).timestamp() == cellar.first.time
    assert len(json.loads(cli("list", "--json").out)) == 3


def test_list_for_people_names_every_point_on_its_own_line(cli: Cli, cellar: Cellar) -> None:
    lines = cli("list").out.splitlines()
    assert len(lines) == 4
    assert any(cellar.second.id in line and "web1" in line and "incremental" in line for line in lines)


def test_no_name_is_cut_in_a_pipe(cli: Cli, cellar: Cellar) -> None:
    long = "a-vm-" + "x" * 300
    with ThreadPoolExecutor(1) as pool, closing(Repository.open(load_config(cellar.config))) as repository:
        back_up(repository, pool, [(0, bytes(CHUNK))], SIZE, vm=long)
    listed = cli("list")
    assert long in listed.out
    assert len(listed.out.splitlines()) == 5, "nor is a line broken"
    assert long in cli("prune", "--dry-run", "--keep-last", "1").out


def test_many_points_are_listed_as_few_are(cli: Cli, cellar: Cellar, monkeypatch: pytest.MonkeyPatch) -> None:
    few = cli("list").out
    monkeypatch.setattr("vmcellar.cli.render.points.MANY", 2)
    many = cli("list").out
    assert [line.rstrip() for line in few.splitlines()] == many.splitlines()
    assert cellar.second.id in many


def test_many_points_of_any_name_stay_in_columns(cellar: Cellar) -> None:
    """Names of any length and script, and what the table's library would take for its markup."""
    points = [replace(cellar.first, vm=name) for name in ("a", "[red]b", "仮想マシン", "a-rather-long-name")]
    console = Console(width=200, file=io.StringIO())
    console.print(points_table(points))
    assert isinstance(console.file, io.StringIO)
    lines = list(points_lines(points))
    assert [line.rstrip() for line in console.file.getvalue().splitlines()] == lines
    assert len({cell_len(line) for line in lines}) == 1


def test_a_vm_that_is_not_there_has_one_exit_code_and_near_names(cli: Cli, cellar: Cellar) -> None:
    assert cellar.first
    for arguments in (("list", "web"), ("show", "web@latest"), ("prune", "web", "--keep-last", "1")):
        result = cli(*arguments)
        assert (result.code, result.out) == (1, ""), arguments
        assert (
            result.err == "error: web has no restore point\n  did you mean web1? `vmcellar list` shows what there is\n"
        )
    listed = cli("list", "web", "--json")
    assert (listed.code, listed.out) == (1, "[]\n")
    assert json.loads(listed.err)["exit"] == 1


def test_points_are_named_by_id_prefix_or_latest(cli: Cli, cellar: Cellar) -> None:
    assert json.loads(cli("show", cellar.first.id, "--json").out)["id"] == cellar.first.id
    assert json.loads(cli("show", cellar.first.id[:-2], "--json").out)["id"] == cellar.first.id
    assert json.loads(cli("show", "web1@latest", "--json").out)["id"] == cellar.second.id
    shown = cli("show", "web1@latest").out
    for word in (cellar.second.id, "vda", "domain.xml", "crash", cellar.first.id):
        assert word in shown


@pytest.mark.parametrize(("name", "code"), [("nobody@latest", 1), ("1999", 1), ("20", 2), ("", 1)])
def test_names_that_fit_no_point_or_several(cli: Cli, cellar: Cellar, name: str, code: int) -> None:
    assert cellar.first
    result = cli("show", name)
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("error: ")


def test_restore_writes_the_disk_of_that_instant(cli: Cli, cellar: Cellar) -> None:
    for point in (cellar.first, cellar.second, cellar.other):
        folder = cellar.folder / "to" / point.id
        result = cli("restore", point.id, "--to", folder, "--format", "raw", "--json")
        assert result.code == 0, result.err
        assert (folder / "vda.raw").read_bytes() == cellar.disks[point.id]
        assert (folder / "domain.xml").read_bytes() == b"<domain/>"
        assert json.loads(result.out)["disks"][0]["path"] == str(folder / "vda.raw")


def test_restore_to_qcow2_is_the_default(cli: Cli, cellar: Cellar) -> None:
    result = cli("restore", "web1@latest", "--to", "out", "--disk", "vda")
    assert result.code == 0, result.err
    assert "vda.qcow2" in result.out
    image = cellar.folder / "out" / "vda.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, cellar.folder / "plain"], check=True)
    assert (cellar.folder / "plain").read_bytes() == cellar.disks[cellar.second.id]


def test_restore_never_overwrites(cli: Cli, cellar: Cellar) -> None:
    kept = cellar.folder / "out" / "vda.raw"
    kept.parent.mkdir()
    kept.write_text("mine")
    result = cli("restore", "web1@latest", "--to", "out", "--format", "raw")
    assert result.code == 1
    assert "exists already" in result.err
    assert kept.read_text() == "mine"


def test_a_plan_writes_nothing(cli: Cli, cellar: Cellar) -> None:
    plan = json.loads(cli("restore", "web1@latest", "--plan", "--json", "--to", "out").out)
    assert plan["data"] == 2 << 20
    assert plan["lost"] == []
    assert not (cellar.folder / "out").exists()
    assert "nothing was written" in cli("restore", "web1@latest", "--plan").out


@pytest.mark.parametrize(
    "arguments",
    [("restore", "web1@latest"), ("restore", "web1@latest", "--to", "out", "--disk"),
     ("restore", "web1@latest", "--to", "out", "--format", "vmdk"), ("verify",), ("verify", "web1@latest", "--all")],
)  # fmt: skip
def test_bad_use(cli: Cli, cellar: Cellar, arguments: tuple[str, ...]) -> None:
    result = cli(*arguments)
    assert (result.code, result.out) == (2, "")
    assert not (cellar.folder / "out").exists()


def test_verify_of_a_whole_repository(cli: Cli, cellar: Cellar) -> None:
    assert cellar.first
    for arguments in (("--all",), ("--all", "--deep"), ("web1@latest",), ("web1@latest", "--deep")):
        result = cli("verify", *arguments)
        assert (result.code, result.out[:6]) == (0, "whole:"), result.err
    report = json.loads(cli("verify", "--all", "--deep", "--json").out)
    assert (report["ok"], report["deep"], report["points"], report["findings"]) == (True, True, 3, [])


def damaged_pack(cellar: Cellar) -> Path:
    """Flips a bit in the middle of the largest data pack: in a chunk of the first point."""
    packs = sorted((cellar.folder / "repo" / "data").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    pack = packs[-1]
    data = bytearray(pack.read_bytes())
    data[len(data) // 4] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    return pack


def test_damage_is_found_named_and_exit_1(cli: Cli, cellar: Cellar) -> None:
    damaged_pack(cellar)
    result = cli("verify", "--all", "--deep")
    assert result.code == 1
    assert result.out.startswith("DAMAGED: ")
    assert "web1" in result.out
    assert "vda: bytes" in result.out
    report = json.loads(cli("verify", "--all", "--deep", "--json").out)
    assert report["ok"] is False
    assert report["findings"][0]["ranges"]


def test_best_effort_restores_the_rest_and_lists_what_is_lost(cli: Cli, cellar: Cellar) -> None:
    damaged_pack(cellar)
    strict = cli("restore", cellar.first.id, "--to", "strict", "--format", "raw")
    assert strict.code == 1
    assert strict.err.startswith("error: ")
    assert not (cellar.folder / "strict").exists()
    result = cli("restore", cellar.first.id, "--to", "out", "--format", "raw", "--best-effort")
    assert result.code == 1
    assert "LOST vda: bytes" in result.out
    assert (cellar.folder / "out" / "vda.raw").stat().st_size == len(cellar.disks[cellar.first.id])


@pytest.mark.parametrize("arguments", [("list",), ("verify", "--all"), ("restore", "web1@latest", "--to", "out")])
def test_a_wrong_passphrase(cli: Cli, cellar: Cellar, arguments: tuple[str, ...]) -> None:
    (cellar.folder / "pass").write_text("wrong\n")
    result = cli(*arguments)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: no key slot of the repository opens with this passphrase")
    assert "Traceback" not in result.err


@pytest.mark.parametrize("gone", ["pass", "repo"])
def test_a_missing_passphrase_file_or_repository(cli: Cli, cellar: Cellar, gone: str) -> None:
    (cellar.folder / gone).rename(cellar.folder / "elsewhere")
    result = cli("list")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: ")
    assert str(cellar.folder / gone) in result.err


def test_list_and_show_tell_what_evidence_says(cli: Cli, cellar: Cellar) -> None:
    assert "never proven" in cli("show", cellar.first.id).out
    repository = Repository.open(load_config(Path("vmcellar.yaml")))
    check = evidence.Check("file /etc/hostname", "sha256 00aa", "sha256 11bb", ok=False)
    record = evidence.Evidence(cellar.first.id, "web1", "drill", "failed", 1.8e9, "host7", (check,), rto=75)
    evidence.write(repository, record)
    repository.close()
    shown = cli("show", cellar.first.id).out
    assert "last drill: failed" in shown
    assert "host7, restored and running in 1 min 15 s" in shown
    assert "file /etc/hostname: expected sha256 00aa, found sha256 11bb" in shown
    assert json.loads(cli("show", cellar.first.id, "--json").out)["verified"] is False
    listed = {entry["id"]: entry for entry in json.loads(cli("list", "web1", "--json").out)}
    assert listed[cellar.first.id]["verified"] is False
    assert listed[cellar.first.id]["evidence"][0]["verdict"] == "failed"
    assert listed[cellar.second.id]["verified"] is True
    assert listed[cellar.second.id]["evidence"] == []


@pytest.mark.usefixtures("later")
def test_prune_keeps_the_newest_point_that_no_evidence_speaks_against(cli: Cli, cellar: Cellar) -> None:
    arguments = ("prune", "web1", "--keep-last", "1", "--dry-run", "--json")
    before = cli(*arguments).out
    repository = Repository.open(load_config(Path("vmcellar.yaml")))
    check = evidence.Check("alive", "a sign of life", "nothing", ok=False)
    evidence.write(repository, evidence.Evidence(cellar.second.id, "web1", "drill", "failed", 1.8e9, "h", (check,)))
    repository.close()
    kept = {row["id"]: row["keep"] for row in json.loads(cli(*arguments).out)}
    assert kept == {cellar.first.id: True, cellar.second.id: True}
    assert {row["id"]: row["keep"] for row in json.loads(before)}[cellar.first.id] is False


def test_a_point_whose_restore_waits_for_a_thaw_is_pinned_until_it_is_done(cli: Cli, cellar: Cellar) -> None:
    repository = Repository.open(load_config(cellar.config))
    for who in ("a", "a", "b"):
        assert while_it_waits(repository, cellar.first, who, waits=True) == ""
        assert pinned(repository) == {cellar.first.id}
    assert cli("prune", "web1", "--keep-last", "1").code == 0
    assert len(repository.points_of("web1")) == 2
    while_it_waits(repository, cellar.first, "a", waits=False)
    assert pinned(repository) == {cellar.first.id}, "another restore waits for it, too"
    while_it_waits(repository, cellar.first, "b", waits=False)
    assert cli("pin", cellar.second.id).code == 0
    while_it_waits(repository, cellar.second, "a", waits=False)
    assert pinned(repository) == {cellar.second.id}, "what a person pinned stays"
    repository.close()
