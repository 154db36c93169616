"""`vmcellar config` and the `--config` option."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Cli
from vmcellar.cli.checks.host import check_host
from vmcellar.config.model import Config
from vmcellar.errors import PermanentError

TEXT = """\
tiers: {hot: repo}
key: {file: pass}
backups:
  - name: nightly
    exclude: [/var/log, "path:/swap"]
    storage: s3://bucket-a
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "other.yaml"
    path.write_text(TEXT)
    return path


def test_check_says_what_is_valid_and_what_has_no_effect(cli: Cli, file: Path) -> None:
    result = cli("config", "check", "--config", file)
    assert (result.code, result.out) == (0, f"{file}: valid, 1 backup job\n")
    assert "note: job nightly: exclude /var/log: a bare path is a note and is backed up, too" in result.err
    assert "warning: job nightly: exclude path:/swap: files there come back with their names" in result.err
    assert "not served by this version" in result.err


def test_the_file_may_be_named_before_the_command_or_by_the_environment(
    cli: Cli, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("--config", file, "config", "check").code == 0
    monkeypatch.setenv("VMCELLAR_CONFIG", str(file))
    assert cli("config", "check").code == 0
    assert cli("config", "check", "--config", "gone.yaml").code == 2


def test_a_mistake_is_exit_2_with_line_and_fix_and_no_traceback(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "vmcellar.yaml").write_text("tiers:\n  hott: /x\n")
    result = cli("config", "check")
    assert (result.code, result.out) == (2, "")
    assert f'error: {tmp_path / "vmcellar.yaml"}:2: tiers.hott: unknown key "hott"; did you mean "hot"?' in result.err


def test_a_mistake_as_json_has_file_line_key_value_and_fix(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "vmcellar.yaml").write_text("tiers:\n  hott: /x\nlimits:\n  vms: many\n")
    result = cli("config", "check", "--json")
    assert (result.code, result.err) == (2, "")
    told = json.loads(result.out)
    assert (told["file"], told["valid"], told["warnings"]) == (str(tmp_path / "vmcellar.yaml"), False, [])
    hint = "`vmcellar config schema` shows every key and what it takes"
    assert [{**each, "file": Path(each["file"]).name} for each in told["errors"]] == [
        _error(2, "tiers.hott", "", 'unknown key "hott"', 'did you mean "hot"?'),
        _error(4, "limits.vms", "many", "must be a whole number", hint),
    ]


def _error(line: int, key: str, value: str, problem: str, fix: str) -> dict[str, object]:
    return {"file": "vmcellar.yaml", "line": line, "key": key, "value": value, "problem": problem, "fix": fix}


@pytest.mark.parametrize(
    ("text", "line", "problem", "fix"),
    [
        ("state: /a\nstate: /b\n", 2, 'the key "state" stands twice (first in line 1)', "keep one of the two"),
        ("state:\n  - [\n", 3, "expected the node content", "check indentation, colons and quotes around this line"),
        ("- a\n", 1, "the file must be a section of keys", "see `vmcellar config schema`"),
    ],
)
def test_what_is_no_yaml_of_ours_is_told_as_json_too(
    cli: Cli, tmp_path: Path, text: str, line: int, problem: str, fix: str
) -> None:
    (tmp_path / "vmcellar.yaml").write_text(text)
    result = cli("config", "check", "--json")
    (error,) = json.loads(result.out)["errors"]
    assert (result.code, error["line"], error["fix"]) == (2, line, fix)
    assert error["problem"].startswith(problem)


def test_notes_and_warnings_as_json_have_their_line(cli: Cli, file: Path) -> None:
    (file.parent / "pass").write_text("correct horse")
    (file.parent / "pass").chmod(0o644)
    result = cli("config", "check", "--json", "--config", file)
    told = json.loads(result.out)
    assert (result.code, result.err, told["valid"], told["errors"]) == (0, "", True, [])
    seen = [(each["level"], each["line"], each["key"], each["fix"]) for each in told["warnings"]]
    assert seen == [
        ("warning", 2, "key", f"chmod 600 {file.parent / 'pass'}"),
        ("note", 5, "backups[0].exclude[0]", ""),
        ("warning", 5, "backups[0].exclude[1]", ""),
        ("note", 6, "backups[0].storage", ""),
    ]


def test_check_warns_of_a_passphrase_that_others_may_read(cli: Cli, file: Path) -> None:
    secret = file.parent / "pass"
    secret.write_text("correct horse")
    secret.chmod(0o600)
    assert "others may read it" not in cli("config", "check", "--config", file).err
    secret.chmod(0o640)
    result = cli("config", "check", "--config", file)
    assert result.code == 0
    assert f"warning: file {secret}: others may read it: chmod 600 {secret}\n" in result.err


def test_show_prints_all_values_as_yaml_and_as_json(cli: Cli, file: Path) -> None:
    shown = json.loads(cli("config", "show", "--json", "--config", file).out)
    assert shown["tiers"]["hot"] == str(file.parent / "repo")
    assert shown["libvirt"]["uri"] == "qemu:///system"
    assert yaml.safe_load(cli("config", "show", "--config", file).out).keys() == shown.keys()


def test_schema_is_json(cli: Cli) -> None:
    assert json.loads(cli("config", "schema").out)["title"] == "vmcellar.yaml"


def test_a_job_whose_storage_is_not_served_is_refused(cli: Cli, file: Path) -> None:
    result = cli("backup", "vm1", "--job", "nightly", "--config", file)
    assert result.code == 1
    assert "this version stores on the tier hot only" in result.err


def test_an_unknown_job_is_bad_use(cli: Cli, file: Path) -> None:
    result = cli("backup", "--job", "weekly", "--config", file)
    assert result.code == 2
    assert "jobs under backups: are: nightly" in result.err


def test_backup_without_a_vm_is_bad_use(cli: Cli, file: Path) -> None:
    assert cli("backup", "--config", file).code == 2


def test_doctor_looks_for_libguestfs_only_where_a_job_leaves_paths_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing() -> None:
        raise PermanentError("libguestfs is not installed", hint="apt-get install libguestfs0")

    monkeypatch.setattr("vmcellar.guestfiles.library.check_installed", missing)
    job = {"name": "nightly", "domains": ["web1"]}
    findings = {}
    for exclude in (["/var/log"], ["path:/var/log"]):
        settings = {"tiers": {"hot": str(tmp_path)}, "backups": [{**job, "exclude": exclude}]}
        found = check_host(Config.model_validate(settings))
        findings[exclude[0]] = [(each.status, each.remedy) for each in found if each.check == "libguestfs"]
    assert findings == {"/var/log": [], "path:/var/log": [("warning", "apt-get install libguestfs0")]}


@pytest.mark.parametrize(("more", "said"), [("", True), (", rpo: 26h", False)])
def test_a_scheduled_job_whose_silence_nobody_would_notice_is_noted(
    cli: Cli, tmp_path: Path, more: str, *, said: bool
) -> None:
    """A pause in the UI, a host that is gone: no run fails, so only the age of points tells."""
    job = f'backups: [{{name: nightly, schedule: "0 2 * * *"{more}}}]\n'
    (tmp_path / "vmcellar.yaml").write_text("notify: [{environment: MAIL}]\n" + job)
    assert ("nobody is told when its backups stop coming" in cli("config", "check").err) is said
    (tmp_path / "vmcellar.yaml").write_text(job)
    assert "nobody is told" not in cli("config", "check").err, "nobody is told of anything"
