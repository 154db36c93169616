"""`vmcellar init`."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, quick_cost


@pytest.fixture(autouse=True)
def _quick_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmcellar.crypto.passphrase.Argon2Cost", quick_cost)


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    path = tmp_path / "pass"
    path.write_text("correct horse\n")
    path.chmod(0o600)
    return path


def test_with_both_options_nothing_is_asked_and_everything_works(cli: Cli, tmp_path: Path, passphrase: Path) -> None:
    result = cli("init", "--tier", f"hot={tmp_path / 'repo'}", "--passphrase-file", passphrase)
    assert result.code == 0, result.err
    assert str(tmp_path / "vmcellar.yaml") in result.out
    assert "vmcellar doctor" in result.err
    assert cli("config", "check").code == 0
    assert cli("list", "--json").out == "[]\n"
    assert "correct horse" not in (tmp_path / "vmcellar.yaml").read_text()
    assert stat.S_IMODE((tmp_path / "repo").stat().st_mode) == 0o700


def test_the_file_may_be_named_and_paths_need_no_quoting(cli: Cli, tmp_path: Path, passphrase: Path) -> None:
    odd = tmp_path / "a: #odd 'folder"
    file = tmp_path / "sub" / "own.yaml"
    assert cli("init", "--config", file, "--tier", f"hot={odd}", "--passphrase-file", passphrase.name).code == 0
    assert cli("list", "--json", "--config", file).out == "[]\n"
    assert (odd / "config").exists()


def test_an_existing_configuration_is_used_and_left_as_it_is(cli: Cli, tmp_path: Path, passphrase: Path) -> None:
    text = f"tiers: {{hot: repo}}\nkey: {{file: {passphrase}}}\nstate: state\n"
    (tmp_path / "vmcellar.yaml").write_text(text)
    refused = cli("init", "--tier", "hot=elsewhere", "--passphrase-file", passphrase)
    assert (refused.code, (tmp_path / "elsewhere").exists()) == (2, False)
    assert cli("init").code == 0
    assert (tmp_path / "vmcellar.yaml").read_text() == text
    again = cli("init")
    assert again.code == 1
    assert "holds a repository already" in again.err


@pytest.mark.parametrize(
    ("tier", "message"),
    [
        ("/srv", "NAME=STORAGE"),
        ("hot=", "NAME=STORAGE"),
        ("cold=/srv", "`vmcellar tiers add cold`"),
        ("hto=/srv", "there is no tier hto"),
        *((f"hot={odd}", "in these very letters; a directory of this name is written ./") for odd in (
            "S3://bucket/x", "s4://foo", "s3:/bucket", "s3:bucket", "CEPH::pool", "ceph:pool", "sftp://h/x",
            "ssh://u@h/x", "host:/export",
        )),
        ("hot=s3://b", "without spaces"),
    ],
)  # fmt: skip
def test_bad_tiers(cli: Cli, tmp_path: Path, passphrase: Path, tier: str, message: str) -> None:
    """Above all, no folder is made of what was meant for another place: its owner would believe his backups there."""
    result = cli("init", "--tier", tier, "--passphrase-file", passphrase)
    assert (result.code, message in result.err) == (2, True), result.err
    assert list(tmp_path.iterdir()) == [passphrase]


def test_a_directory_may_have_a_colon_where_it_is_written_as_a_path(cli: Cli, tmp_path: Path, passphrase: Path) -> None:
    assert cli("init", "--tier", "hot=./s3:bucket", "--passphrase-file", passphrase).code == 0
    assert (tmp_path / "s3:bucket" / "config").is_file()
    assert cli("list", "--json").out == "[]\n"


def test_a_place_that_cannot_be_a_directory_is_called_what_it_is(cli: Cli, tmp_path: Path, passphrase: Path) -> None:
    for place, message in ((passphrase, "this is a file, not a directory"), ("/proc/xyz", "no directory can be made")):
        result = cli("init", "--tier", f"hot={place}", "--passphrase-file", passphrase)
        assert (result.code, message in result.err, "run as root" in result.err) == (1, True, False), result.err
    result = cli("--config", tmp_path, "init", "--tier", "hot=repo", "--passphrase-file", passphrase)
    assert (result.code, f"name the file in it, such as {tmp_path}/vmcellar.yaml" in result.err) == (2, True)
    assert list(tmp_path.iterdir()) == [passphrase]


def test_where_a_mount_may_be_missing_nothing_says_to_make_a_repository(
    cli: Cli, tmp_path: Path, passphrase: Path
) -> None:
    """It would be a second one, below the mount point."""
    assert cli("init", "--tier", "hot=repo", "--passphrase-file", passphrase).code == 0
    (tmp_path / "repo").rename(tmp_path / "unmounted")
    for command in ("list", "key"):
        missing = cli(command, *(["list"] if command == "key" else []))
        assert (missing.code, "findmnt" in missing.err, "init" in missing.err) == (1, True, False), missing.err
    (tmp_path / "repo").mkdir()
    empty = cli("list")
    assert empty.code == 1
    assert empty.err.index("findmnt") < empty.err.index("only where there never was one, type `vmcellar init`")


def test_a_missing_passphrase_file_leaves_nothing_behind(cli: Cli, tmp_path: Path) -> None:
    result = cli("init", "--tier", f"hot={tmp_path / 'repo'}", "--passphrase-file", "gone")
    assert result.code == 1
    assert f"passphrase file {tmp_path / 'gone'}: no such file" in result.err
    assert list(tmp_path.iterdir()) == []


def test_without_a_terminal_what_is_missing_is_named(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    result = cli("init")
    assert result.code == 2
    assert "--tier hot=DIR is missing" in result.err
    assert "--passphrase-file FILE is missing" in cli("init", "--tier", f"hot={tmp_path}/r").err


def test_on_a_terminal_it_asks(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["S3://bucket/x", str(tmp_path / "repo"), "new-pass", "typed words"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.prompt", lambda *_args, **_kwargs: next(answers))
    assert cli("init").code == 2
    assert cli("init").code == 0
    made = tmp_path / "new-pass"
    assert made.read_text() == "typed words\n"
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert cli("list", "--json").out == "[]\n"
