"""What users install: the wheel, in an environment of its own, away from the source tree.

Third-party packages are those of this environment, so that no network is needed; the project in it is not seen.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.guest import LabGuest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("vmcellar", "flows", "tasks", "deployments")

Installed = Callable[..., str]


def run(*command: str | Path, folder: Path, **variables: str) -> str:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(folder), "LANG": "C.UTF-8", **variables}
    words = [str(word) for word in command]
    done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment that holds the wheel."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, system_site_packages=True, with_pip=False)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, folder=home)
    others = home / "lib" / "python3.11" / "site-packages" / "others.pth"
    others.write_text(sysconfig.get_path("purelib") + "\n")  # a path alone: the editable install there is not followed
    return home / "bin"


@pytest.fixture
def installed(programs: Path, vm_tmp: Path) -> Installed:
    def call(*arguments: str | Path) -> str:
        nowhere = "http://127.0.0.1:1/api"  # else Prefect begins a server of its own for a backup
        return run(programs / "vmcellar", *arguments, folder=vm_tmp, PREFECT_API_URL=nowhere)

    return call


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    there = {name for name in zipfile.ZipFile(wheel).namelist() if name.split("/")[0] in PACKAGES}
    wanted = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted - there == set()
    assert {Path(name).suffix for name in there} >= {".py", ".json", ".yaml", ".yml", ".env", ".service"}


def test_nothing_of_the_source_tree_is_used(programs: Path, tmp_path: Path) -> None:
    code = f"import {', '.join(PACKAGES)}; print(*(m.__file__ for m in ({', '.join(PACKAGES)})), sep='\\n')"
    found = run(programs / "python", "-c", code, folder=tmp_path).split()
    assert all(Path(path).is_relative_to(programs.parent) for path in found)
    assert str(ROOT) not in "".join(found)


@pytest.mark.libvirt
def test_an_installed_program_sets_up_backs_up_and_makes_the_catalog_anew(
    installed: Installed, vm_tmp: Path, paused_guest: LabGuest
) -> None:
    vm = paused_guest.name
    paused_guest.poke("vda", 0, 1 << 20, seed=4)
    (vm_tmp / "passphrase").write_text("of a test")
    (vm_tmp / "passphrase").chmod(0o600)
    installed("init", "--tier", f"hot={vm_tmp / 'repository'}", "--passphrase-file", vm_tmp / "passphrase")
    file = vm_tmp / "vmcellar.yaml"
    text = f"scratch: {vm_tmp / 'scratch'}\nlanding: {{dir: {vm_tmp / 'landing'}}}\n"
    file.write_text(file.read_text() + text)
    assert json.loads(installed("backup", vm, "--json"))
    next(vm_tmp.rglob("catalog.sqlite")).unlink()
    installed("catalog", "rebuild")  # finds its migrations


def test_what_reaches_a_server_is_there(installed: Installed) -> None:
    assert "Usage: vmcellar deploy" in installed("deploy", "--help")
