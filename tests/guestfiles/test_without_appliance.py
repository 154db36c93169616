"""What of `vmcellar files` needs no appliance: names that are shown, patterns for tar, no libguestfs at all."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from vmcellar.errors import PermanentError
from vmcellar.guestfiles import library
from vmcellar.guestfiles.inside import sector_sizes
from vmcellar.guestfiles.listing import shown
from vmcellar.guestfiles.patterns import all_but


def test_without_libguestfs_the_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    library._load.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(PermanentError, match=r"libguestfs, .* is not installed") as caught:
        library.check_installed()
    assert caught.value.hint == "apt-get install libguestfs0 libguestfs-xfs linux-image-amd64"
    library._load.cache_clear()


def test_names_cannot_steer_a_terminal() -> None:
    assert shown(b"a\x1b[2Jb\n\xff\xc3\xbc") == r"a\x1b[2Jb\n\xffü"


def test_sector_sizes_come_from_the_definition() -> None:
    xml = """<domain><devices><disk><target dev="vda"/></disk><disk><target dev="vdb"/>
        <blockio logical_block_size="4096"/></disk></devices></domain>"""
    assert sector_sizes(xml) == {"vdb": 4096}


@pytest.mark.parametrize(
    "name", [b"a", b"ab", b"a b", b" lead", b"new\nline", b"\\", b"[x]*?", b"]", b"-", b"!^", b"\xff\xfe"]
)
def test_patterns_leave_one_name(tmp_path: Path, name: bytes) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    others = {
        b"b",
        b"aa",
        b"abc",
        b"ab",
        b"a",
        b"a  b",
        b"a b ",
        b"lead",
        b"newline",
        b"new line",
        b"[x]",
        b"x",
        b"^!",
        b"\xff",
    }
    for one in {name, name + b"more", name[:-1] + b"z", *others}:
        (folder / os.fsdecode(one)).mkdir()
        (folder / os.fsdecode(one) / "below").touch()
    (folder / os.fsdecode(name) / "below").unlink()
    (tmp_path / "patterns").write_bytes(b"\n".join(all_but(name)) + b"\n")
    patterns, made = tmp_path / "patterns", tmp_path / "made.tar"
    command = ["tar", f"--directory={folder}", "--anchored", f"--exclude-from={patterns}", f"--file={made}", "-c", "."]
    subprocess.run(command, check=True, env={"LC_ALL": "C", "PATH": os.environ["PATH"]})
    with tarfile.open(tmp_path / "made.tar") as read:
        assert sorted(os.fsencode(one) for one in read.getnames()) == sorted([b".", b"./" + name])
