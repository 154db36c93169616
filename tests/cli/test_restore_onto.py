"""`restore --onto` as a user meets it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from lab.require import requires
from tests.cli.conftest import SIZE, Cellar, Cli
from vmcellar.restore.in_use import Machines, NoMachines


@pytest.fixture(autouse=True)
def _no_libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    requires("qemu-nbd")

    def nobody(_uri: str) -> Machines:
        return NoMachines()

    monkeypatch.setattr("vmcellar.restore.in_use.machines_at", nobody)


def test_onto_says_what_it_compared_and_wrote(cli: Cli, cellar: Cellar) -> None:
    disk = cellar.folder / "disk.raw"
    disk.write_bytes(cellar.disks[cellar.first.id])
    done = cli("restore", cellar.second.id, "--onto", disk, "--yes")
    assert done.code == 0, done.err
    assert "8 MiB compared, 1 MiB written, 1 MiB zeroed" in done.out
    assert disk.read_bytes() == cellar.disks[cellar.second.id]
    report = json.loads(cli("restore", cellar.second.id, "--onto", f"vda={disk}", "--yes", "--json").out)
    assert report["disks"][0]["size"] == SIZE
    assert report["disks"][0]["written"] == 0


def test_nothing_is_written_unasked(cli: Cli, cellar: Cellar) -> None:
    disk = cellar.folder / "disk.raw"
    disk.write_bytes(bytes(SIZE))
    refused = cli("restore", "web1@latest", "--onto", disk)
    assert refused.code == 2
    assert "--yes" in refused.err
    assert disk.read_bytes() == bytes(SIZE)


@pytest.mark.parametrize("beside", [["--to", "out"], ["--define", "new"], ["--disk", "vda"], ["--best-effort"]])
def test_what_does_not_go_with_onto(cli: Cli, cellar: Cellar, beside: list[str]) -> None:
    assert cellar
    refused = cli("restore", "web1@latest", "--onto", "x", "--yes", *beside)
    assert refused.code == 2
    assert f"--onto and {beside[0]}" in refused.err


def test_the_disk_must_be_named_where_there_is_a_choice(cli: Cli, cellar: Cellar) -> None:
    assert cellar
    refused = cli("restore", "web1@latest", "--onto", "vdx=disk", "--yes")
    assert refused.code == 2
    assert "The point has vda" in refused.err


def test_an_image_that_is_missing_is_not_made_before_the_user_agreed(
    cli: Cli, cellar: Cellar, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cellar
    monkeypatch.setattr("vmcellar.restore.rbd_images.make_missing", lambda *made: pytest.fail(str(made)))
    monkeypatch.setattr("vmcellar.cli.ontorun.sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    monkeypatch.setattr("vmcellar.cli.ontorun.typer.prompt", lambda *_, **__: "no")
    refused = cli("restore", "web1@latest", "--onto", "rbd:pool/new")
    assert refused.code == 2
    assert "is not 'rbd:pool/new': nothing was written" in refused.err
