"""`vmcellar backup` on a real libvirt domain (paused, without a guest), with and without Prefect."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import libvirt
import pytest
import yaml

from lab.prefect_server import PrefectServer, new_database
from tests.sources.paused_vm import MIB, PausedVm, paused_vm
from vmcellar.config import load_config
from vmcellar.crypto.passphrase import Argon2Cost
from vmcellar.repository.repository import Repository

pytestmark = pytest.mark.libvirt

NOBODY = "http://127.0.0.1:1/api"
"""A Prefect server that does not answer: the command then does without."""

WAITS_IN_EXPORT = """
import pathlib, time
from vmcellar.backup import stages
real = stages.export
def export(engine, run, target, segment, progress, cancel):
    pathlib.Path("{go}").exists() or print("exporting", flush=True)
    deadline = time.monotonic() + 60
    while not cancel.cancelled and not pathlib.Path("{go}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return real(engine, run, target, segment, progress, cancel)
stages.export = export
from vmcellar.cli.main import main
main()
"""


@dataclass(frozen=True, slots=True)
class Host:
    """A running VM and a repository for it."""

    vm: PausedVm
    config: Path

    def environment(self, server: str = NOBODY) -> dict[str, str]:
        home = self.config.parent / "prefect"
        if not server:
            new_database(home)
        more = {"PREFECT_HOME": str(home), "VMCELLAR_CONFIG": str(self.config)}
        return {**os.environ, **more, **({"PREFECT_API_URL": server} if server else {})}

    def run(self, *arguments: str, server: str = NOBODY) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "vmcellar.cli.main", *arguments],
            capture_output=True,
            text=True,
            env=self.environment(server),
            timeout=240,
            check=False,
        )

    @contextmanager
    def waiting(self, server: str = NOBODY, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A backup that stands in its first export, until it is stopped or there is a file `go` beside the config."""
        program = WAITS_IN_EXPORT.replace("{go}", str(self.config.parent / "go"))
        with subprocess.Popen(
            [sys.executable, "-c", program, "backup", *(arguments or (self.vm.name,))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(server),
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stderr is not None
                if process.stdout.readline() != "exporting\n":
                    pytest.fail(f"the backup ended before its first export: {process.stderr.read()}")
                yield process
            finally:
                process.kill()

    def has_job(self) -> bool:
        return bool(self.vm.domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)


@pytest.fixture
def host(libvirt_daemons: str) -> Iterator[Host]:
    with paused_vm() as vm, pytest.MonkeyPatch.context() as patch:
        patch.setattr("vmcellar.crypto.passphrase.Argon2Cost", lambda *given: Argon2Cost(*(given or (64, 1, 1))))
        vm.add_qcow2("vda")
        vm.start()
        vm.io("vda", "write -P 7 0 1M")
        (vm.folder / "pass").write_text("correct horse\n")
        config = vm.folder / "vmcellar.yaml"
        values = {
            "tiers": {"hot": "repo"},
            "key": {"file": "pass"},
            "state": "state",
            "scratch": str(vm.scratch),
            "landing": {"dir": "landing", "budget": "64MiB"},
            "limits": {"vms": 1},
            "libvirt": {"uri": libvirt_daemons},
            "backups": [{"name": "mine", "domains": [vm.name]}],
        }
        config.write_text(yaml.safe_dump(values))
        Repository.init(load_config(config)).close()
        yield Host(vm, config)


def test_full_then_incremental_then_restore_without_a_server(host: Host) -> None:
    first = host.run("backup", host.vm.name)
    assert first.returncode == 0, first.stderr
    assert "does not answer: backing up without a run record" in first.stderr
    assert f"{host.vm.name}: full " in first.stdout
    host.vm.io("vda", "write -P 9 4M 64k")
    host.vm.io("vda", "write -z 0 512k")
    second = host.run("backup", "--job", "mine", "--json")
    assert second.returncode == 0, second.stderr
    (point,) = json.loads(second.stdout)
    assert (point["kind"], point["verified"], point["uncovered"]) == ("incremental", True, [])
    full = host.run("backup", host.vm.name, "--full", "--json")
    assert json.loads(full.stdout)[0]["kind"] == "full"

    out = host.config.parent / "out"
    restored = host.run("restore", point["id"], "--to", str(out), "--format", "raw")
    assert restored.returncode == 0, restored.stderr
    expected = bytes(MIB // 2) + b"\x07" * (MIB // 2) + bytes(3 * MIB) + b"\x09" * (64 << 10)
    assert (out / "vda.raw").read_bytes() == expected.ljust(16 * MIB, b"\0")
    assert host.run("verify", "--all", "--deep").returncode == 0


def test_one_unknown_vm_does_not_stop_the_others_and_the_run_is_red(host: Host) -> None:
    result = host.run("backup", "no-such-vm", host.vm.name)
    assert result.returncode == 1
    assert f"{host.vm.name}: full " in result.stdout
    assert "error: no-such-vm: no such VM" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_vm_of_the_job_that_is_off_is_named_and_red_while_it_has_no_point(host: Host) -> None:
    host.vm.stop()
    off = host.run("backup", "--job", "mine")
    assert off.returncode == 1
    assert f"error: {host.vm.name}: the VM is off and has no verified restore point at all" in off.stderr
    host.vm.start()
    assert host.run("backup", "--job", "mine").returncode == 0
    host.vm.stop()
    later = host.run("backup", "--job", "mine", "--json")
    assert (later.returncode, json.loads(later.stdout)) == (0, []), later.stderr
    assert f"note: {host.vm.name}: off: nothing new was read; its newest verified point is " in later.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_job_and_the_next_backup_works(host: Host, number: signal.Signals) -> None:
    with host.waiting() as process:
        assert host.has_job()
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, ""), err
    assert "Traceback" not in err
    assert not host.has_job()
    again = host.run("backup", host.vm.name)
    assert again.returncode == 0, again.stderr


def test_two_signals_leave_at_once_and_recover_clears_what_is_left(host: Host) -> None:
    with host.waiting() as process:
        for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
            process.send_signal(number)
        process.communicate(timeout=120)
    assert process.returncode == 130
    recovered = host.run("recover", "--json")
    assert recovered.returncode == 0, recovered.stderr
    assert {action["vm"] for action in json.loads(recovered.stdout)} <= {host.vm.name}
    assert not host.has_job()
    assert host.run("backup", host.vm.name).returncode == 0


@pytest.mark.prefect
def test_a_server_that_is_lost_in_mid_run_stops_no_backup(host: Host, tmp_path: Path) -> None:
    """It is killed while the first VM is read: that point is written, the second VM is done without it."""
    with paused_vm() as other:
        other.add_qcow2("vda")
        other.start()
        with PrefectServer(tmp_path) as server:
            url = server.environment["PREFECT_API_URL"]
            with host.waiting(url, host.vm.name, other.name, "--json") as process:
                server.kill()
                (host.config.parent / "go").touch()
                out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        points = json.loads(out)
        assert [(point["vm"], point["verified"]) for point in points] == [(host.vm.name, True), (other.name, True)]
        assert f"may not have heard of it: {host.vm.name} ({points[0]['id']})" in err
        assert f"backed up without a run record: {other.name}" in err
        assert all(line.startswith("note: ") for line in err.splitlines()), err
    assert {point["id"] for point in json.loads(host.run("list", "--json").stdout)} == {p["id"] for p in points}


@pytest.mark.prefect
def test_through_the_flow_in_prefects_own_local_mode(host: Host) -> None:
    done = host.run("backup", host.vm.name, server="")
    assert done.returncode == 0, done.stderr
    assert f"{host.vm.name}: full " in done.stdout
    assert done.stderr == ""
    failed = host.run("backup", "no-such-vm", server="")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("error: no-such-vm: no such VM")
    assert "Traceback" not in failed.stderr


@pytest.mark.prefect
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_flow_cleanly(host: Host, number: signal.Signals) -> None:
    with host.waiting(server="") as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, ""), err
    assert "Traceback" not in err
    assert not host.has_job()


def test_the_doctor_sees_the_vm_and_what_it_lacks(host: Host) -> None:
    findings = json.loads(host.run("doctor", "--json").stdout)
    assert all(finding.keys() == {"check", "status", "detail", "remedy"} for finding in findings)
    mine = [finding for finding in findings if finding["check"] == f"domain {host.vm.name}"]
    assert any("guest agent" in finding["detail"] and finding["remedy"] for finding in mine)
    (prefect,) = (finding for finding in findings if finding["check"] == "prefect")
    assert prefect["status"] == "failed"
    assert {"libvirt", "QEMU", "libnbd", "repository", "clock"} <= {finding["check"] for finding in findings}
