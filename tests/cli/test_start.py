"""Help, version, completion, bad use: what must work on any machine, fast, without a configuration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vmcellar
from tests.cli.conftest import Cli

COMMANDS = (
    "init", "doctor", "config", "backup", "restore", "list", "show", "verify", "recover", "locks", "key",
)  # fmt: skip
HEAVY = ("prefect", "pandas", "numpy", "libvirt", "nbd", "pydantic", "cryptography", "sqlite3", "flows", "tasks")


def test_help_lists_every_command_in_its_panel(cli: Cli) -> None:
    result = cli("--help")
    assert result.code == 0
    for word in (*COMMANDS, "Set up", "Back up and restore", "Look and check", "Upkeep", "Exit codes"):
        assert word in result.out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(cli: Cli, command: str) -> None:
    result = cli(command, "--help")
    assert result.code == 0
    assert "Usage" in result.out


def test_help_loads_nothing_heavy() -> None:
    """Speed, held by its cause: the modules that cost time are not loaded."""
    program = (
        "import sys, json\n"
        "from vmcellar.cli import main\n"
        "sys.argv = ['vmcellar', '--help']\n"
        "try: main.main()\n"
        "except SystemExit: pass\n"
        "sys.stderr.write(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout
    assert set(HEAVY) & set(json.loads(done.stderr)) == set()


def test_the_collector_is_told_before_a_command_imports_anything() -> None:
    """Else it walks all that was imported again and again, and finds nothing to free."""
    program = (
        "import gc\nfrom vmcellar.cli import main\nmain.app = lambda **_: print(gc.get_threshold()[0])\nmain.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 10 * 700, "Python's own threshold, or near it"


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"vmcellar {vmcellar.__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_printed(shell: str) -> None:
    environment = {**os.environ, "_VMCELLAR_COMPLETE": f"source_{shell}"}
    done = subprocess.run(
        [sys.executable, "-c", "from vmcellar.cli.main import app; app(prog_name='vmcellar')"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert "_VMCELLAR_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    "arguments", [("bakcup",), ("list", "--josn"), ("list", "a", "b"), ("show",), ("config", "shwo"), ("--confg", "x")]
)
def test_bad_use_is_exit_2_with_nothing_on_stdout(cli: Cli, arguments: tuple[str, ...]) -> None:
    result = cli(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "Usage" in result.err


@pytest.mark.parametrize("command", [("list",), ("doctor",), ("recover",), ("config", "check"), ("backup", "vm1")])
def test_without_a_configuration_the_way_to_one_is_named(cli: Cli, command: tuple[str, ...]) -> None:
    result = cli(*command)
    assert result.code == 2
    assert result.err.startswith("error: no configuration")
    assert "vmcellar init" in result.err
    assert "Traceback" not in result.err


def test_ctrl_c_ends_with_its_own_exit_code(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vmcellar.config.find_config", interrupt)
    assert cli("config", "check").code == 130


def test_an_error_of_the_system_names_the_path_and_what_to_do(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise NotADirectoryError(20, "Not a directory", "/var/lib/vmcellar/cache")

    monkeypatch.setattr("vmcellar.config.find_config", refuse)
    result = cli("config", "check")
    assert (result.code, result.err.splitlines()[0]) == (1, "error: /var/lib/vmcellar/cache: Not a directory")


def started(*arguments: bytes | str, stdout: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [os.fsencode(each) for each in (sys.executable, "-m", "vmcellar.cli.main", *arguments)]
    with Path(stdout or os.devnull).open("w") as out:
        return subprocess.run(
            command,
            env={**os.environ, **environment},
            stdout=out if stdout else subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )


def test_no_name_is_too_much_for_an_encoding(tmp_path: Path) -> None:
    """Neither on stdout, nor in JSON, nor as an argument where the locale knows ASCII alone."""
    file = tmp_path / "wéb.yaml"
    file.write_text("tiers: {hot: /srv/wéb}\n", encoding="utf-8")
    shown = started("config", "check", "-c", str(file), PYTHONIOENCODING="ascii", PYTHONUTF8="1")
    assert (shown.returncode, shown.stdout) == (0, f"{tmp_path}/w\\xe9b.yaml: valid, 0 backup jobs\n")
    text = started("config", "show", "--json", "-c", str(file), PYTHONIOENCODING="ascii", PYTHONUTF8="1").stdout
    assert json.loads(text)["tiers"]["hot"] == "/srv/wéb"
    plain = started("backup", "x", "--job", "wéb", "-c", str(file), LC_ALL="C", PYTHONUTF8="0")
    assert (plain.returncode, "no backup job named wéb" in plain.stderr) == (2, True), plain.stderr


def test_an_output_that_is_full_is_named(tmp_path: Path) -> None:
    file = tmp_path / "vmcellar.yaml"
    file.write_text("tiers: {hot: /srv}\n")
    for unbuffered in ("", "1"):
        done = started("config", "show", "-c", str(file), stdout="/dev/full", PYTHONUNBUFFERED=unbuffered)
        assert done.returncode == 1
        assert done.stderr.splitlines()[0] == "error: standard output could not be written: No space left on device"
        assert "Exception" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"), [(("list", "--json"), 2), (("list", "--josn", "--json"), 2), (("show", "--json"), 2)]
)
def test_with_json_errors_are_one_line_of_json(cli: Cli, arguments: tuple[str, ...], code: int) -> None:
    result = cli(*arguments)
    said = json.loads(result.err)
    assert (result.code, result.out, said["exit"], set(said)) == (code, "", code, {"error", "hint", "exit"})
    assert "error" not in cli("list", "--help", "--json").err


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_stream(closed: str) -> None:
    """Else a program of ours would print into it."""
    program = (
        "import os, sys; from vmcellar.cli import leaving; leaving.open_closed_streams(); "
        "print('x'); sys.stdin.read(); print('y', file=sys.stderr); "
        "sys.exit(os.open(os.devnull, os.O_RDONLY) < 3)"
    )
    line = f'exec {sys.executable} -c "{program}" {closed}'
    done = subprocess.run(["/bin/sh", "-c", line], check=False, capture_output=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0
