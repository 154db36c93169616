"""`vmcellar key`, and repositories in recipient mode."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cli.conftest import CHUNK, SIZE, Cellar, Cli
from tests.repository.writing import back_up
from vmcellar.config import load_config
from vmcellar.repository.repository import Repository


def slots(cli: Cli) -> dict[str, dict[str, str]]:
    return {slot["id"]: slot for slot in json.loads(cli("key", "list", "--json").out)}


def packs(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in (folder / "repo" / "data").rglob("*") if path.is_file()}


def use_passphrase(cellar: Cellar, name: str) -> None:
    cellar.config.write_text(cellar.config.read_text().replace("file: pass", f"file: {name}"))


def test_list_needs_no_passphrase_and_shows_no_secret(cli: Cli, cellar: Cellar) -> None:
    (cellar.folder / "pass").unlink()
    (slot,) = slots(cli).values()
    assert slot.keys() == {"id", "kind", "label", "created"}
    assert slot["kind"] == "passphrase"
    assert slot["id"] in cli("key", "list").out


def test_a_second_passphrase_opens_the_repository_until_it_is_removed(cli: Cli, cellar: Cellar) -> None:
    before = packs(cellar.folder)
    (first,) = slots(cli)
    (cellar.folder / "second").write_text("second words\n")
    added = cli("key", "add", "--passphrase-file", "second", "--label", "office")
    assert added.code == 0, added.err
    (second,) = set(slots(cli)) - {first}
    assert slots(cli)[second]["label"] == "office"
    use_passphrase(cellar, "second")
    assert cli("list").code == 0
    assert cli("key", "remove", second).code == 0
    assert cli("list").code == 1
    assert cli("key", "remove", first).code == 1
    assert cli("key", "remove", "nonsense").code == 1
    assert packs(cellar.folder) == before


def test_rotate_replaces_the_passphrase_and_rewrites_no_pack(cli: Cli, cellar: Cellar) -> None:
    before = packs(cellar.folder)
    (cellar.folder / "new").write_text("new words\n")
    rotated = cli("key", "rotate", "--passphrase-file", "new")
    assert rotated.code == 0, rotated.err
    assert cli("list").code == 1
    use_passphrase(cellar, "new")
    assert cli("verify", "--all", "--deep").code == 0
    assert packs(cellar.folder) == before


def test_a_paper_key_gives_a_lost_passphrase_back(cli: Cli, cellar: Cellar) -> None:
    sheet = cli("key", "export").out
    assert "version 1" in sheet
    (cellar.folder / "sheet").write_text(sheet)
    (cellar.folder / "pass").unlink()
    (cellar.folder / "fresh").write_text("fresh words\n")
    added = cli("key", "add", "--from-paper", "sheet", "--passphrase-file", "fresh")
    assert added.code == 0, added.err
    use_passphrase(cellar, "fresh")
    assert cli("verify", "--all", "--deep").code == 0


@pytest.mark.parametrize(
    "arguments",
    [("add",), ("rotate",), ("rotate", "--recipient", "x"), ("add", "--passphrase-file", "a", "--recipient", "b")],
)
def test_bad_use(cli: Cli, cellar: Cellar, arguments: tuple[str, ...]) -> None:
    assert cellar.first
    result = cli("key", *arguments)
    assert (result.code, result.out) == (2, "")


def test_a_missing_or_wrong_key_file_is_named(cli: Cli, cellar: Cellar) -> None:
    gone = cli("key", "add", "--recipient", "gone.pub")
    assert gone.code == 1
    assert "key file gone.pub" in gone.err
    (cellar.folder / "junk.pub").write_text("{}")
    assert cli("key", "add", "--recipient", "junk.pub").code == 1
    assert cli("key", "add", "--passphrase-file", "gone").code == 1


def generate(cli: Cli, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "owner-pass").write_text("owner words\n")
    monkeypatch.setenv("VMCELLAR_IDENTITY_PASSPHRASE", "owner words")
    result = cli("key", "generate", name, "--passphrase-file", "owner-pass")
    assert result.code == 0, result.err
    assert (folder / name).stat().st_mode & 0o077 == 0
    assert cli("key", "generate", name, "--passphrase-file", "owner-pass").code == 2


def test_recipient_mode_the_host_backs_up_and_lists_but_only_the_recipient_reads_disks(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pass").write_text("host words\n")
    generate(cli, tmp_path, "owner", monkeypatch)
    made = cli("init", "--tier", f"hot={tmp_path / 'repo'}", "--passphrase-file", "pass", "--recipient", "owner.pub")
    assert made.code == 0, made.err
    assert "private key" in made.err
    host = Repository.open(load_config(tmp_path / "vmcellar.yaml"))
    with ThreadPoolExecutor(2) as pool:
        point = back_up(host, pool, [(0, b"\x01" * CHUNK)], SIZE)
    host.close()

    assert json.loads(cli("list", "--json").out)[0]["id"] == point.id
    refused = cli("restore", point.id, "--to", "stolen", "--format", "raw")
    assert refused.code == 1
    assert "private key" in refused.err
    assert not (tmp_path / "stolen").exists()

    restored = cli("restore", point.id, "--to", "out", "--format", "raw", "--identity", "owner")
    assert restored.code == 0, restored.err
    assert (tmp_path / "out" / "vda.raw").read_bytes() == b"\x01" * CHUNK + bytes(SIZE - CHUNK)
    assert cli("verify", "--all", "--deep", "--identity", "owner").code == 0
    monkeypatch.setenv("VMCELLAR_IDENTITY_PASSPHRASE", "wrong words")
    assert cli("restore", point.id, "--to", "other", "--identity", "owner").code == 1


def test_a_recipient_may_be_replaced(cli: Cli, cellar: Cellar, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(cli, cellar.folder, "old", monkeypatch)
    assert cli("key", "add", "--recipient", "old.pub").code == 0
    assert cli("key", "add", "--recipient", "old.pub").code == 2
    generate_again = cli("key", "generate", "new", "--passphrase-file", "owner-pass")
    assert generate_again.code == 0
    rotated = cli("key", "rotate", "--recipient", "new.pub", "--identity", "old")
    assert rotated.code == 0, rotated.err
    assert cli("verify", "--all", "--deep", "--identity", "new").code == 0
    assert cli("verify", "--all", "--identity", "old").code == 1
    assert "recipient" in cli("key", "export", "--identity", "new").out


def test_a_slot_is_removed_by_its_whole_name_only(cli: Cli, cellar: Cellar) -> None:
    """What cannot be undone takes no prefix, and says what was meant."""
    (slot,) = (path.name for path in (cellar.folder / "repo" / "keys").iterdir())
    short = cli("key", "remove", slot[:8])
    assert (short.code, short.err) == (
        1,
        f"error: the repository has no key slot {slot[:8]}\n  name it in full: {slot}\n",
    )
    assert "is the last key that opens the repository" in cli("key", "remove", slot).err
    assert "`vmcellar key list` shows the slots" in cli("key", "remove", "deadbeef").err


def test_a_missing_file_of_a_new_passphrase_is_not_looked_for_in_the_configuration(cli: Cli, cellar: Cellar) -> None:
    said = cli("key", "add", "--passphrase-file", cellar.folder / "nothere")
    assert said.code == 1
    assert "no such file\n  write the passphrase into it first\n" in said.err
