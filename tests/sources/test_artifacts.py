"""What is captured beside the disks, in every form that a definition has it, or a warning says not (pitfall 18)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vmcellar.sources import libvirt_artifacts


class Domain:
    """One that has this in its `os`."""

    def __init__(self, os: str) -> None:
        self._xml = f"<domain><name>web</name><uuid>u</uuid><os>{os}</os><devices/></domain>"

    def XMLDesc(self, flags: int = 0) -> str:  # noqa: N802  (libvirt's name)
        assert flags
        return self._xml

    def isPersistent(self) -> bool:  # noqa: N802  (libvirt's name)
        return True


@pytest.mark.parametrize(
    ("os", "name"),
    [
        ("<nvram template='/usr/share/vars.fd'>{file}</nvram>", "nvram"),
        ("<nvram type='file'>\n  <source file='{file}'/>\n</nvram>", "nvram"),
        ("<nvram type='block'><source dev='{file}'/></nvram>", "nvram"),
        ("<loader type='pflash' readonly='no'>{file}</loader>", "loader"),
        ("<kernel>{file}</kernel>", "kernel"),
    ],
)
def test_a_file_of_the_vm_is_captured(tmp_path: Path, os: str, name: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"boot entries")
    found, warnings = libvirt_artifacts.collect(Domain(os.format(file=file)))
    assert (found.get(name), warnings) == (b"boot entries", ())


@pytest.mark.parametrize(
    ("os", "said"),
    [
        ("<nvram type='network'><source protocol='iscsi' name='iqn/0'/></nvram>", "nvram .* form network"),
        ("<nvram/>", "nvram .* form without a file"),
        ("<varstore path='/srv/vars.json'/>", "varstore .* form varstore"),
        ("<nvram>/srv/nowhere/vars.fd</nvram>", "nvram .* No such file"),
        ("<loader type='pflash' readonly='no'>/srv/nowhere/OVMF.fd</loader>", "loader .* No such file"),
    ],
)
def test_what_cannot_be_read_is_said(os: str, said: str) -> None:
    found, (warning,) = libvirt_artifacts.collect(Domain(os))
    assert found.keys() == {"domain.xml"}
    assert "may not boot" in warning
    assert re.match(said, warning)
