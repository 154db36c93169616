"""The Ansible role: its syntax, its argument specification; and with VMCELLAR_ANSIBLE=1 all of it on bare machines that
are reached by SSH (`lab.baremachine`): ten minutes, most of them for fetching packages.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from lab.baremachine import PROGRAMS, BareMachine
from lab.loopdevice import loop_device
from lab.paths import vm_folder
from lab.prefect_server import PrefectServer
from lab.require import requires
from lab.shellcommand import call

ROOT = Path(__file__).resolve().parents[2]
PLAYS = ROOT / "deployments" / "ansible"
ROLE = PLAYS / "roles" / "vmcellar"


real = pytest.mark.skipif("VMCELLAR_ANSIBLE" not in os.environ, reason="ten minutes: set VMCELLAR_ANSIBLE=1")


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


@pytest.fixture(scope="module")
def package() -> dict[str, Any]:
    """The settings that name the wheel of this source, and the versions that it was tested with."""
    subprocess.run([ROOT / "run", "package"], check=True, timeout=120)
    (wheel,) = (ROOT / "dist").glob("*.whl")
    return {"vmcellar_wheel": str(wheel), "vmcellar_constraints": str(ROOT / "dist" / "constraints.txt")}


def run_again_and_again(folder: Path, machine: BareMachine, settings: dict[str, Any]) -> None:
    """The role as it is written of: a look, the work, the same again, and a look that finds nothing to do."""
    inventory = folder / "hosts"
    inventory.write_text(machine.inventory + "\n")
    arguments = ["-i", str(inventory), "-e", json.dumps(settings)]
    counts = []
    for more in (["--check"], [], [], ["--check", "--diff"]):
        done = play(folder, *arguments, *more, seconds=1500)
        assert done.returncode == 0, done.stdout + done.stderr
        counts.append(int(re.findall(r"changed=(\d+)", done.stdout)[-1]))
        sys.stdout.write(f"{more}: {done.stdout.splitlines()[-2:]}\n")
    assert counts[1] > 5
    assert counts[2:] == [0, 0]


def asked(server: PrefectServer, path: str) -> Any:
    """What the server has of a kind."""
    url = f"{server.environment['PREFECT_API_URL']}/{path}"
    return httpx.post(url, json={}, timeout=30).raise_for_status().json()


@pytest.fixture
def folder() -> Iterator[Path]:
    for name in PROGRAMS:
        requires(name)
    with vm_folder("bare") as made:
        yield made


@real
def test_a_host_with_its_own_server(folder: Path, package: dict[str, Any]) -> None:
    """The second run changes nothing, and `--check` says so; the services run as they are meant to."""
    more = {
        "vmcellar_landing_size": "64m",
        "vmcellar_config": {"backups": [{"name": "nightly", "schedule": "0 2 * * *"}]},
        "vmcellar_api_auth": "backup:of a test",
    }
    with BareMachine(folder) as machine:
        run_again_and_again(folder, machine, {**package, **more})
        assert "noatime" not in machine.run(["findmnt", "-no", "OPTIONS", "/run/vmcellar-landing"])
        assert "huge=within_size" in machine.run(["findmnt", "-no", "OPTIONS", "/run/vmcellar-landing"])
        assert machine.run(["lsattr", "-d", "/srv/vmcellar"]).split()[0].count("A") == 1
        assert machine.run(["stat", "-c", "%a", "/etc/vmcellar/passphrase", "/etc/vmcellar"]).split() == ["600", "700"]
        assert json.loads(machine.run(["vmcellar", "list", "--json"])) == []
        assert machine.run(["systemctl", "--failed", "--plain", "--no-legend"]) == ""


@real
def test_a_worker_of_a_shared_server_with_a_device_for_its_repository(folder: Path, package: dict[str, Any]) -> None:
    """The modes together that a host of many has: the repository's own file system is mounted without access times, and
    the shared server knows the host's deployments and its worker.
    """
    requires("loop devices")
    backing = folder / "backing"
    with backing.open("wb") as file:
        file.truncate(256 << 20)
    with loop_device(backing) as device, PrefectServer(folder / "prefect") as server:
        call(["mkfs.ext4", "-q", device])
        more = {
            "vmcellar_mode": "worker",
            "vmcellar_api_url": server.environment["PREFECT_API_URL"],
            "vmcellar_repository": "/srv/vm-cellar",
            "vmcellar_repository_device": str(device),
            "vmcellar_config": {"backups": [{"name": "nightly", "schedule": "0 2 * * *"}]},
        }
        with BareMachine(folder, [device]) as machine:
            run_again_and_again(folder, machine, {**package, **more})
            assert "noatime" in machine.run(["findmnt", "-no", "OPTIONS", "/srv/vm-cellar"])
            assert machine.run(["systemctl", "is-active", "vmcellar-worker"]).strip() == "active"
            assert machine.run(["systemctl", "--failed", "--plain", "--no-legend"]) == ""
            assert machine.name in {queue["name"] for queue in asked(server, "work_queues/filter")}
            (pool,) = asked(server, "work_pools/filter")
            (worker,) = asked(server, f"work_pools/{pool['name']}/workers/filter")
            assert worker["status"] == "ONLINE"
            assert f"nightly@{machine.name}" in {each["name"] for each in asked(server, "deployments/filter")}
