"""The systemd units: accepted by systemd, hardened, and naming only commands and settings that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from lab.require import requires
from tests.docs.test_commands import problem

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "deployments" / "systemd").glob("*.service"))
PAGE = (ROOT / "docs" / "installing.md").read_text()
PROGRAMS = "/opt/vmcellar/bin"


@pytest.fixture(autouse=True)
def systemd() -> None:
    """Its tools, without a systemd that runs."""
    requires("systemd-analyze")


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False, timeout=60)


def installed(unit: Path, folder: Path) -> Path:
    """The unit as it stands, but with programs that exist, which `verify` asks for."""
    copy = folder / unit.name
    copy.write_text(
        unit.read_text()
        .replace(f"{PROGRAMS}/python", "/usr/bin/python3")
        .replace(f"{PROGRAMS}/vmcellar", "/usr/bin/env")
    )
    return copy


def exposure(unit: Path) -> float:
    said = analyze("security", "--offline=true", "--no-pager", str(unit)).stdout
    return float(re.findall(r"Overall exposure level for \S+: ([\d.]+)", said)[0])


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_accepts_the_unit(unit: Path, tmp_path: Path) -> None:
    folder = tmp_path / "units"
    folder.mkdir()
    for each in UNITS:  # they name each other
        installed(each, folder)
    done = analyze("verify", "--man=no", str(folder / unit.name))
    said = [line for line in done.stderr.splitlines() if unit.name in line or "vmcellar" in line]
    assert (done.returncode, said) == (0, [])


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_the_unit_is_as_hardened_as_the_docs_say(unit: Path) -> None:
    (written,) = re.findall(rf"\| `{unit.stem}` \|.*\| ([\d.]+) \|", PAGE)
    assert exposure(unit) <= float(written)


def test_a_unit_without_hardening_would_be_seen(tmp_path: Path) -> None:
    bare = tmp_path / "bare.service"
    bare.write_text("[Service]\nExecStart=/usr/bin/env\n")
    assert exposure(bare) > 9


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_the_commands_in_it_exist(unit: Path) -> None:
    typed = re.findall(rf"{PROGRAMS}/vmcellar ([^'\n]+)", unit.read_text())
    assert [problem(shlex.split(command)) for command in typed] == [""] * len(typed)
    modules = re.findall(rf"{PROGRAMS}/python -m (\S+)", unit.read_text())
    assert typed or modules
    assert [module for module in modules if find_spec(module) is None] == []


def test_all_that_touch_vms_stop_by_draining() -> None:
    for name in ("serve", "worker"):
        text = (ROOT / "deployments" / "systemd" / f"vmcellar-{name}.service").read_text()
        assert "ExecStop=/bin/sh -c '[ -z \"$MAINPID\" ] || exec /opt/vmcellar/bin/vmcellar drain --wait 30m'" in text
        assert "TimeoutStopSec=35min" in text
