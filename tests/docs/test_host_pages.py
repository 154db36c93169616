"""Pages that need a host and no VM: configuration.md, monitoring.md, upkeep.md, tiers.md, typed as they stand."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.postgres import free_port
from lab.require import requires
from tests.docs.playing import Scene, check, play
from tests.docs.terminal import Terminal
from tests.repository.writing import back_up
from vmcellar.config import load_config
from vmcellar.repository.repository import Repository


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Terminal]:
    """One in a file tree of its own."""
    made = Terminal(tmp_path, monkeypatch, capsys, {"9816": str(free_port())})
    (made.folder / "etc/vmcellar").mkdir()
    try:
        yield made
    finally:
        made.close()


def test_configuration(terminal: Terminal) -> None:
    requires("root")
    text = (
        "tiers:\n  hot: /srv/vmcellar\nkey:\n  file: passphrase\nbackups:\n  - name: web\n    retension: {daily: 7}\n"
    )
    (terminal.folder / "etc/vmcellar/vmcellar.yaml").write_text(text)
    landing = terminal.folder / "run/vmcellar-landing"
    mount = "mount -t tmpfs -o huge=within_size,mode=0700,size=4g vmcellar-landing /run/vmcellar-landing"
    try:
        play(
            "configuration.md",
            terminal,
            {
                "vmcellar config check": Scene(code=2),
                mount: Scene(after=lambda: mounted(landing)),
            },
        )
    finally:
        terminal.type("umount /run/vmcellar-landing")


def mounted(folder: Path) -> None:
    (found,) = [line for line in Path("/proc/mounts").read_text().splitlines() if str(folder) in line]
    assert "mode=700" in found
    assert "size=4194304k" in found
    assert "huge=within_size" in found


def store_a_point(terminal: Terminal) -> None:
    repository = Repository.open(load_config(terminal.folder / "etc/vmcellar/vmcellar.yaml"))
    with ThreadPoolExecutor(1) as pool:
        back_up(repository, pool, [(0, b"x" * 4096)], 1 << 20, vm="web1")
    repository.close()


def a_point(terminal: Terminal) -> None:
    """A host with a repository that holds a point of web1."""
    (terminal.folder / "etc/vmcellar/passphrase").write_text("of a test\n")
    check(
        "init",
        terminal.type(
            "vmcellar --config /etc/vmcellar/vmcellar.yaml init --tier hot=/srv/vmcellar "
            "--passphrase-file /etc/vmcellar/passphrase"
        ),
    )
    store_a_point(terminal)


def test_monitoring(terminal: Terminal) -> None:
    """The history is made of a point that is there: what the exporter reads is the catalog alone."""
    a_point(terminal)
    (terminal.folder / "var/lib/node_exporter").mkdir()
    check("rebuild", terminal.type("vmcellar catalog rebuild"))

    def scraped() -> None:
        address = terminal.real("http://127.0.0.1:9816/metrics")
        with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310  (the exporter's own address)
            assert "vmcellar_vm_points{repository=" in answer.read().decode()

    def written() -> None:
        assert 'vm="web1"' in (terminal.folder / "var/lib/node_exporter/vmcellar.prom").read_text()

    play(
        "monitoring.md",
        terminal,
        {
            "vmcellar metrics --listen 9816": Scene(until=terminal.real("127.0.0.1:9816"), after=scraped),
            "vmcellar metrics --textfile /var/lib/node_exporter/vmcellar.prom": Scene(after=written),
        },
    )


def test_upkeep(terminal: Terminal) -> None:
    """A pack is damaged before the repair, and a point is gone before it is brought back; a copy has both."""
    a_point(terminal)
    path = terminal.folder / "etc/vmcellar/vmcellar.yaml"
    tiers = {"hot": str(terminal.folder / "srv/vmcellar"), "warm": str(terminal.folder / "srv/disks")}
    document = yaml.safe_load(path.read_text()) | {"tiers": tiers, "placement": {"hot": "7d", "warm": "rest"}}
    path.write_text(yaml.safe_dump(document))
    check("add", terminal.type("vmcellar tiers add warm"))
    (point,) = json.loads(terminal.type("vmcellar list --json").out)
    hot, copy = terminal.folder / "srv/vmcellar", terminal.folder / "mnt/copy"
    shutil.copytree(hot, copy)
    terminal.words |= {"POINT": point["id"], "ID": point["id"], "TEXT": "'before an upgrade'", "STORAGE": str(copy)}

    def lose() -> None:
        (hot / "points" / point["id"]).unlink()

    play(
        "upkeep.md",
        terminal,
        {
            "vmcellar pin POINT --note TEXT": Scene(after=lambda: pinned(terminal)),
            "vmcellar locks": Scene(),
            "vmcellar verify --all": Scene(["1 points|1 restore point|whole|sound|ok"]),
            "vmcellar verify --all --deep --repair --from STORAGE": Scene(
                ["mended|repaired"], before=partial(damage, hot)
            ),
            "vmcellar verify ID --repair --from STORAGE": Scene(before=lose),
        },
    )
    check("verify", terminal.type("vmcellar verify --all --deep"))
    assert [each["id"] for each in json.loads(terminal.type("vmcellar list --json").out)] == [point["id"]]


def pinned(terminal: Terminal) -> None:
    assert "before an upgrade" in terminal.type("vmcellar pin").out


def damage(hot: Path) -> None:
    """One byte of a pack is another."""
    pack = next(path for path in (hot / "data").rglob("*") if path.is_file())
    data = bytearray(pack.read_bytes())
    data[80] ^= 1
    pack.write_bytes(data)


def test_tiers(terminal: Terminal) -> None:
    """hot and warm are directories here. The mirror that is promoted is a copy: hot is not lost."""
    hot, warm, mirror = (terminal.folder / "srv" / name for name in ("vmcellar", "disks", "mirror"))
    (terminal.folder / "etc/vmcellar/passphrase").write_text("of a test\n")

    def configure(**tiers: Path) -> None:
        document: dict[str, Any] = {
            "tiers": {name: str(path) for name, path in tiers.items()},
            "key": {"file": "passphrase"},
        }
        document |= {"state": "state", "placement": {"hot": "7d", "warm": "rest", "copies": 2}}
        if "warm" not in tiers:
            del document["placement"]
        (terminal.folder / "etc/vmcellar/vmcellar.yaml").write_text(yaml.safe_dump(document))

    def lost() -> None:
        shutil.copytree(warm, mirror)
        configure(hot=mirror)
        check("list", terminal.type("vmcellar list"), says=["web1"])

    terminal.monkeypatch.setenv("VMCELLAR_CONFIG", str(terminal.folder / "etc/vmcellar/vmcellar.yaml"))
    configure(hot=hot)
    both = partial(configure, hot=hot, warm=warm)
    play(
        "tiers.md",
        terminal,
        {
            "vmcellar init": Scene(["repository"], after=partial(store_a_point, terminal)),
            "vmcellar tiers add warm": Scene(before=both),
            "vmcellar tiers move": Scene(["copies|copied"]),
            "vmcellar tiers": Scene(["warm"]),
            "vmcellar tiers promote": Scene(["repository"], answers=["y"], before=lost, after=both),
            "vmcellar verify --all --deep --repair --from warm": Scene(
                ["mended|repaired"], before=partial(damage, hot)
            ),
            "vmcellar list": Scene(["web1"]),
        },
    )
    check("verify", terminal.type("vmcellar verify --all --deep"))
