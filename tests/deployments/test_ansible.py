"""The Ansible role: its syntax, its argument specification; and, where asked for, all of it on a machine over SSH.

The machine is Debian 12 with systemd as its first process, which `ssh` reaches as root without questions; what is done
to it stays. Set $VMCELLAR_ANSIBLE_HOST to its inventory line, such as
`guest ansible_host=127.0.0.1 ansible_port=2222`, and $VMCELLAR_ANSIBLE_PIP to arguments for pip if it needs some.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PLAYS = ROOT / "deployments" / "ansible"
ROLE = PLAYS / "roles" / "vmcellar"


def read(path: str) -> Any:
    return yaml.safe_load((ROLE / path).read_text())


def play(folder: Path, *arguments: str, seconds: int = 60) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ANSIBLE_CONFIG": str(PLAYS / "ansible.cfg"), "ANSIBLE_HOME": str(folder)}
    command = [str(Path(sys.executable).with_name("ansible-playbook")), *arguments, str(PLAYS / "site.yml")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=seconds)


def test_a_play_without_a_wheel_stops_before_it_does_anything(tmp_path: Path) -> None:
    done = play(
        tmp_path,
        "-i",
        "localhost,",
        "-c",
        "local",
        "-e",
        f"ansible_become=false ansible_python_interpreter={sys.executable}",
    )
    assert done.returncode == 2, done.stderr
    assert "missing required arguments: vmcellar_wheel" in done.stdout
    assert "changed=0" in done.stdout


def test_every_setting_is_specified_and_has_a_default() -> None:
    options = read("meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    assert set(read("defaults/main.yml")) == set(options) - {"vmcellar_wheel"}
    tasks = "".join(path.read_text() for path in ROLE.glob("*/*.yml"))
    used = set(re.findall(r"\bvmcellar_\w+", tasks))
    own = set(re.findall(r"register: (vmcellar_\w+)", tasks)) | set(re.findall(r"^\s+(vmcellar_\w+):", tasks, re.M))
    assert used - own - set(options) - set(read("vars/main.yml")) == set()
    assert set(options) <= used


def test_secrets_are_not_logged() -> None:
    options = read("meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    for name in ("vmcellar_passphrase", "vmcellar_api_auth"):
        assert options[name]["no_log"]
    told = [
        task for task in read("tasks/configuration.yml") if re.search(r"{{ vmcellar_(passphrase|api_auth)", str(task))
    ]
    assert len(told) == 2
    assert all(task["no_log"] for task in told)


@pytest.mark.skipif("VMCELLAR_ANSIBLE_HOST" not in os.environ, reason="VMCELLAR_ANSIBLE_HOST names no machine")
@pytest.mark.timeout(1800)
def test_the_second_run_changes_nothing_and_check_says_so(tmp_path: Path) -> None:
    subprocess.run([ROOT / "run", "package"], check=True, timeout=120)
    inventory = tmp_path / "hosts"
    inventory.write_text(os.environ["VMCELLAR_ANSIBLE_HOST"] + "\n")
    settings = {
        "vmcellar_wheel": str(next((ROOT / "dist").glob("*.whl"))),
        "vmcellar_constraints": str(ROOT / "dist" / "constraints.txt"),
        "vmcellar_pip_arguments": os.environ.get("VMCELLAR_ANSIBLE_PIP", "").split(),
        "vmcellar_landing_size": "64m",
        "vmcellar_config": {"backups": [{"name": "nightly", "schedule": "0 2 * * *"}]},
        "vmcellar_api_auth": "backup:of a test",
    }
    arguments = ["-i", str(inventory), "-e", json.dumps(settings)]
    counts = []
    for more in (["--check"], [], [], ["--check", "--diff"]):
        done = play(tmp_path, *arguments, *more, seconds=1500)
        assert done.returncode == 0, done.stdout + done.stderr
        counts.append(int(re.findall(r"changed=(\d+)", done.stdout)[-1]))
        sys.stdout.write(f"{more}: {done.stdout.splitlines()[-2:]}\n")
    assert counts[1] > 5
    assert counts[2:] == [0, 0]
