"""docs/archives.md, typed as it stands: its configuration, with the stand-in for Glacier in the place of Amazon's."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from lab.glacier import Glacier
from lab.shellcommand import call
from tests.docs.pages import ROOT, blocks
from tests.docs.playing import Scene, check, play
from tests.docs.terminal import Terminal
from tests.repository.writing import back_up
from tests.tiers.conftest import as_written
from vmcellar.config import load_config
from vmcellar.config.tiers import TierSettings
from vmcellar.repository.repository import Repository

MIB = 1 << 20
SIZE = 8 * MIB
HOLE = bytes(MIB)


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Terminal]:
    """One in a file tree of its own."""
    made = Terminal(tmp_path, monkeypatch, capsys)
    (made.folder / "etc/vmcellar").mkdir()
    try:
        yield made
    finally:
        made.close()


def write_configuration(terminal: Terminal, cold: TierSettings) -> Path:
    """The page's own, with the address and the keys of the server that is there."""
    (text,) = blocks((ROOT / "docs/archives.md").read_text(), "yaml")
    document = yaml.safe_load(terminal.real(text))
    given = as_written(cold)
    given["storage_class"] = given["prices"] = document["tiers"]["cold"]["storage_class"]
    document["tiers"]["cold"] |= given
    path = terminal.folder / "etc/vmcellar/vmcellar.yaml"
    (path.parent / "pass").write_text("of a test\n")
    path.write_text(yaml.safe_dump({**document, "key": {"file": "pass"}, "state": "state"}))
    return path


def test_archives(terminal: Terminal, glacier_server: Glacier, glacier_settings: TierSettings) -> None:
    path = write_configuration(terminal, glacier_settings)
    assert load_config(path).other_tiers()["cold"].storage_class == "DEEP_ARCHIVE"
    check("init", terminal.type("vmcellar init --config /etc/vmcellar/vmcellar.yaml"))
    one, two = (random.Random(seed).randbytes(MIB) for seed in range(2))
    repository = Repository.open(load_config(path))
    with ThreadPoolExecutor(1) as pool:
        old = back_up(repository, pool, [(0, one)], SIZE, vm="old", time=time.time() - 20 * 86400)
        new = back_up(repository, pool, [(0, one), (MIB, two)], SIZE, vm="web1", time=time.time() - 10 * 86400)
    repository.close()
    check("move", terminal.type("vmcellar tiers move"), says=["cold"])
    terminal.words |= {"POINT": old.id, "DIR": "out --format raw"}

    def thawed() -> None:
        glacier_server.advance(hours=48.1)

    def restored() -> None:
        assert (terminal.home / "out/vda.raw").read_bytes() == one + HOLE * 7
        terminal.words |= {"POINT": new.id, "DIR": "again"}

    def complete() -> None:
        thawed()
        check("again", terminal.type("vmcellar restore POINT --to DIR --readable"))
        image, raw = terminal.home / "again/vda.qcow2", terminal.home / "again.raw"
        call(["qemu-img", "convert", "-O", "raw", image, raw])
        assert raw.read_bytes() == one + two + HOLE * 6

    play(
        "archives.md",
        terminal,
        {
            "vmcellar restore web1@latest --plan": Scene(["bulk", "48", "vmcellar thaw"]),
            "vmcellar thaw POINT --speed bulk --days 5": Scene(["bulk", "requested: [12] packs"], answers=["y"]),
            "vmcellar thaw --status": Scene([re.escape(old.id[:8])], after=thawed),
            "vmcellar thaw POINT --fetch": Scene(["copied [12] packs"]),
            "vmcellar restore POINT --to DIR": Scene(after=restored),
            "vmcellar restore POINT --to DIR --readable": Scene(),
            "vmcellar thaw POINT --rest-of DIR": Scene(["requested: [12] packs"], answers=["y"], after=complete),
        },
    )
