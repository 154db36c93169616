"""`verify --sample` and `verify --repair` as a user meets them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Cellar, Cli
from tests.restore.test_restore import damage, flip_one


def packs(cellar: Cellar, kind: str = "data") -> list[Path]:
    return sorted(path for path in (cellar.folder / "repo" / kind).rglob("*") if path.is_file())


def copied(cellar: Cellar) -> Path:
    return Path(shutil.copytree(cellar.folder / "repo", cellar.folder / "copy"))


def test_damage_is_named_repaired_and_gone(cli: Cli, cellar: Cellar) -> None:
    copy = copied(cellar)
    for path in packs(cellar):
        damage(path, flip_one)
    packs(cellar, "meta")[0].unlink()
    found = cli("verify", "--all", "--deep")
    assert found.code == 1
    assert "DAMAGED" in found.out
    assert "--repair --from STORAGE" in found.out
    plan = cli("verify", "--all", "--deep", "--repair", "--from", copy, "--dry-run")
    assert plan.code == 1
    assert "would be repaired: pack" in plan.out
    done = cli("verify", "--all", "--deep", "--repair", "--from", copy)
    assert done.code == 0, done.out
    assert "repaired: pack" in done.out
    assert "whole:" in done.out
    report = json.loads(cli("verify", "--all", "--deep", "--repair", "--from", copy, "--json").out)
    assert report["ok"]
    assert report["repair"] == {"repaired": [], "not_repaired": [], "elsewhere": [], "dry_run": False}


def test_what_no_copy_has_is_told_with_what_to_do(cli: Cli, cellar: Cellar) -> None:
    (cellar.folder / "copy").mkdir()
    assert cli("verify", "--all", "--repair", "--from", "copy").code == 2
    shutil.copytree(cellar.folder / "repo" / "points", cellar.folder / "copy" / "points")
    max(packs(cellar), key=lambda path: path.stat().st_size).unlink()  # surely holds disk chunks
    found = cli("verify", "--all", "--repair", "--from", "copy")
    assert found.code == 1
    assert "not repaired: pack data/" in found.out
    assert "run a backup of the VMs named" in found.out
    assert "vda: bytes " in found.out


def test_a_lost_point_is_brought_back_by_its_id(cli: Cli, cellar: Cellar) -> None:
    copy = copied(cellar)
    (cellar.folder / "repo" / "points" / cellar.first.id).unlink()
    assert cli("verify", cellar.first.id).code == 1
    assert f"only in the copy (pruned here, or lost): {cellar.first.id}" in " ".join(
        cli("verify", "--all", "--repair", "--from", copy).out.split()
    )
    assert cli("verify", cellar.first.id, "--repair", "--from", copy).code == 0
    assert cli("verify", cellar.first.id, "--deep").code == 0


def test_samples_take_what_was_read_longest_ago(cli: Cli, cellar: Cellar) -> None:
    total = len(packs(cellar)) + len(packs(cellar, "meta"))
    first = json.loads(cli("verify", "--all", "--deep", "--sample", "50%", "--seed", "3", "--json").out)["sample"]
    assert (first["kind"], first["picked"], first["of"]) == ("pack", -(-total // 2), total)
    assert first["never"] == total - first["picked"]
    assert json.loads(cli("verify", "--all", "--deep", "--sample", "50%", "--json").out)["sample"]["never"] == 0
    shown = cli("verify", "--all", "--sample", "34%", "--seed", "5")
    assert shown.code == 0
    assert "sample: 2 of 3 points, seed 5" in shown.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("--all", "--repair"),
        ("--all", "--from", "copy"),
        ("--all", "--dry-run"),
        ("x", "--sample", "5%"),
        ("--all", "--sample", "5"),
        ("--all", "--sample", "5%", "--repair", "--from", "copy"),
        ("--all", "--repair", "--from", "ftp://host/x"),
    ],
)
def test_bad_use(cli: Cli, cellar: Cellar, arguments: tuple[str, ...]) -> None:
    assert cellar.config.exists()
    found = cli("verify", *arguments)
    assert found.code == 2, found
    assert "Traceback" not in found.err


def test_a_repository_that_does_not_open_any_more_is_mended_first(cli: Cli, cellar: Cellar) -> None:
    copy = copied(cellar)
    (slot,) = (cellar.folder / "repo" / "keys").iterdir()
    damage(slot, flip_one)
    (cellar.folder / "repo" / "config").unlink()
    assert cli("list").code == 1
    told = cli("verify", "--all", "--repair", "--from", copy, "--dry-run")
    assert told.code == 1
    assert f"would be repaired: key object keys/{slot.name} (was damaged)" in told.err
    assert "would be repaired: key object config (was missing)" in told.err
    done = cli("verify", "--all", "--repair", "--from", copy)
    assert done.code == 0, done.err
    assert f"repaired: key object keys/{slot.name}" in done.out
    assert cli("list").code == 0
