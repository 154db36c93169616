"""A restore that writes what is thawed by now and goes on when more is. Against the stand-in for Glacier."""

from __future__ import annotations

import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lab.glacier import Glacier
from tests.cli.conftest import Cli, cli, quick_cost
from tests.repository.writing import back_up
from tests.tiers.frozen import MIB, SIZE, Frozen, make_frozen, make_tiered
from tests.tiers.test_thaw import PowerCutError, chunks_of
from vmcellar.config import load_config
from vmcellar.config.tiers import TierSettings
from vmcellar.repository.repository import Repository
from vmcellar.restore import as_thawed, thaw
from vmcellar.restore.restore import Job
from vmcellar.upkeep import gc
from vmcellar.upkeep.consolidate import consolidate

__all__ = ["cli"]


@pytest.fixture
def frozen(
    glacier_server: Glacier, glacier_settings: TierSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Frozen:
    monkeypatch.setattr("vmcellar.crypto.passphrase.Argon2Cost", quick_cost)
    return make_frozen(glacier_server, glacier_settings, tmp_path)


def disk_packs(frozen: Frozen, point: str) -> list[str]:
    """The packs of the disk's bytes, in the order of the disk."""
    located = frozen.repository.index.locate(chunks_of(frozen, point))
    packs = list(dict.fromkeys(found.pack.key for found in located.values()))
    assert len(packs) > 1
    return packs


def asked(frozen: Frozen) -> list[str]:
    return sorted(str(request["key"]).removeprefix("vm-backups/") for request in frozen.requests())


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_what_is_readable_is_written_and_needed_no_more(
    cli: Cli, frozen: Frozen, tmp_path: Path, image_format: str
) -> None:
    point, out = frozen.points[1], tmp_path / "out"
    late = disk_packs(frozen, point)[0]
    awake = [key for key in frozen.needed(point) if key != late]
    frozen.archive("GLACIER", [late])
    command = ("restore", point, "--to", out, "--format", image_format, "--readable")
    first = json.loads(cli(*command, "--json").out)
    assert (first["asleep"], 0 < first["written"] < first["data"]) == ([late], True)
    assert not (out / f"vda.{image_format}").exists()
    frozen.archive("GLACIER", awake)
    refused = cli("restore", point, "--to", out, "--format", image_format)
    assert (refused.code, "must be thawed first" in refused.err) == (1, True)
    assert cli("thaw", point, "--yes", "--rest-of", out).code == 0
    assert asked(frozen) == [late]
    assert "1 packs are asleep" in cli(*command).err
    frozen.server.advance(hours=5.1)
    done = cli(*command)
    assert done.code == 0, done.err
    assert {path.name for path in out.iterdir()} == {f"vda.{image_format}", "domain.xml", "kernel"}
    check_image(out / f"vda.{image_format}", frozen.disks[1])


def check_image(image: Path, disk: bytes) -> None:
    """Read by QEMU where it is not raw."""
    if image.suffix == ".raw":
        assert image.read_bytes() == disk
        return
    raw = image.parent.with_suffix(".raw")
    raw.write_bytes(disk)
    subprocess.run(["qemu-img", "compare", "-q", "-F", "raw", "-f", "qcow2", image, raw], check=True)


def test_a_thaw_that_ends_while_it_is_read_keeps_what_is_written(
    cli: Cli, frozen: Frozen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point, out = frozen.points[1], tmp_path / "out"
    late = disk_packs(frozen, point)[0]
    frozen.archive("GLACIER", [late])
    assert cli("thaw", point, "--yes", "--days", "1").code == 0
    frozen.server.advance(hours=6)
    command = ("restore", point, "--to", out, "--format", "raw", "--readable")
    asleep = thaw.asleep
    looks: list[int] = []

    def then_it_ends(*arguments: Any) -> set[str]:
        found = asleep(*arguments)
        if not looks:
            frozen.server.advance(days=3)
        looks.append(len(found))
        return found

    with monkeypatch.context() as once:
        once.setattr(as_thawed, "asleep", then_it_ends)
        first = json.loads(cli(*command, "--json").out)
    assert (looks[:2], first["asleep"]) == ([0, 1], [late])
    assert first["written"] > 0
    assert cli("thaw", point, "--yes").code == 0
    frozen.server.advance(hours=6)
    done = cli("restore", point, "--to", out, "--format", "raw")  # without --readable: it goes on all the same
    assert done.code == 0, done.err
    assert (out / "vda.raw").read_bytes() == frozen.disks[1]


def begin_without_one(cli: Cli, frozen: Frozen, out: Path) -> tuple[tuple[Any, ...], str]:
    """The command that goes on, and the pack that is left, which can be read now."""
    late = disk_packs(frozen, frozen.points[1])[0]
    command = ("restore", frozen.points[1], "--to", out, "--format", "raw", "--readable")
    with pytest.MonkeyPatch.context() as once:
        once.setattr(as_thawed, "asleep", lambda _, keys: {late} & set(keys))
        assert json.loads(cli(*command, "--json").out)["asleep"] == [late]
    return command, late


@pytest.mark.parametrize("old", ["stays", "is deleted"])
def test_what_is_left_is_found_where_it_lies_now(
    cli: Cli, frozen: Frozen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str
) -> None:
    """Consolidation puts the chunks that are left into another pack meanwhile."""
    out = tmp_path / "out"
    command, late = begin_without_one(cli, frozen, out)
    repacked(frozen, late, monkeypatch)
    if old == "is deleted":
        frozen.server.advance(days=2)
        assert late in gc.collect(frozen.repository).deleted
    done = json.loads(cli(*command, "--json").out)
    assert (out / "vda.raw").read_bytes() == frozen.disks[1]
    assert [disk["written"] for disk in done["disks"]] == [2 * MIB]


def repacked(frozen: Frozen, late: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The packs that consolidation made, also of what is left."""
    before = set(frozen.packs)
    with monkeypatch.context() as once:  # so few packs are not worth it otherwise
        once.setattr("vmcellar.upkeep.consolidate._is_fragmented", bool)
        once.setattr("vmcellar.upkeep.consolidate.READS_MIN", 1)
        assert late in consolidate(frozen.repository).old
    return sorted(set(frozen.packs) - before)


def test_the_rest_of_a_restore_is_thawed_where_it_lies_now(
    cli: Cli, frozen: Frozen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command, late = begin_without_one(cli, frozen, out)
    record = (out / ".vmcellar-begun.json").read_bytes()
    new = repacked(frozen, late, monkeypatch)
    assert "all 1 packs that are left" in cli("thaw", frozen.points[1], "--rest-of", out).err
    frozen.archive("GLACIER")
    assert cli("thaw", frozen.points[1], "--yes", "--rest-of", out).code == 0
    assert asked(frozen) == new
    assert (out / ".vmcellar-begun.json").read_bytes() == record, "whoever only asks writes nothing"
    frozen.server.advance(hours=5.1)
    assert cli(*command).code == 0
    assert (out / "vda.raw").read_bytes() == frozen.disks[1]


def test_a_new_image_with_the_inode_of_the_old_one_is_not_taken_for_it(
    cli: Cli, frozen: Frozen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command, _ = begin_without_one(cli, frozen, out)
    image = out / ".vda.raw.partial"
    image.rename(out / "same-inode")

    def dies(*_: Any, **__: Any) -> None:
        raise PowerCutError

    with monkeypatch.context() as once:
        once.setattr(as_thawed, "open_target", dies)
        with pytest.raises(PowerCutError):
            cli(*command)
    os.truncate(out / "same-inode", 0)
    os.truncate(out / "same-inode", SIZE)
    (out / "same-inode").rename(image)  # as a file system does that gives the inode to the next file
    os.truncate(out / ".kernel.partial", 1)  # as a kill in the middle of its writing does
    done = cli(*command)
    assert done.code == 0, done.err
    assert (out / "vda.raw").read_bytes() == frozen.disks[1]
    kernel = frozen.repository.point(frozen.points[1]).artifact("kernel")
    assert kernel is not None
    assert (out / "kernel").read_bytes() == frozen.repository.artifact(kernel)


def test_a_restore_that_died_when_everything_had_its_name_is_done(
    cli: Cli, frozen: Frozen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command, _ = begin_without_one(cli, frozen, out)
    name_all = Job.name_all

    def dies(*arguments: Any) -> None:
        name_all(*arguments)
        raise PowerCutError

    with monkeypatch.context() as once:
        once.setattr(Job, "name_all", dies)
        with pytest.raises(PowerCutError):
            cli(*command)
    done = json.loads(cli(*command, "--json").out)
    assert [disk["written"] for disk in done["disks"]] == [2 * MIB]
    assert {path.name for path in out.iterdir()} == {"vda.raw", "domain.xml", "kernel"}
    assert (out / "vda.raw").read_bytes() == frozen.disks[1]
    assert "exists already" in cli(*command).err


def test_no_image_is_named_of_which_something_is_not_recorded_as_written(
    cli: Cli, frozen: Frozen, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command, _ = begin_without_one(cli, frozen, out)
    record = out / ".vmcellar-begun.json"
    fields = json.loads(record.read_text())
    fields["windows"]["vda"]["0"]["left"] = []
    record.write_text(json.dumps(fields))
    refused = cli(*command)
    assert (refused.code, "bytes are written by the record" in " ".join(refused.err.split())) == (1, True), refused.err
    assert not (out / "vda.raw").exists()


def test_a_folder_takes_one_restore(cli: Cli, frozen: Frozen, tmp_path: Path) -> None:
    out = tmp_path / "out"
    frozen.archive("GLACIER", frozen.needed(frozen.points[1])[1:])
    assert cli("restore", frozen.points[1], "--to", out, "--readable").code == 0
    for other in ((frozen.points[0], "--readable"), (frozen.points[1], "--format", "raw", "--readable")):
        refused = cli("restore", other[0], "--to", out, *other[1:])
        assert (refused.code, "another restore has begun there" in refused.err) == (1, True), refused.err
    assert "a restore has begun there" in cli("restore", frozen.points[0], "--to", out, "--best-effort").err
    assert "another restore" in cli("thaw", frozen.points[0], "--yes", "--rest-of", out).err
    assert cli("thaw", frozen.points[0], "--yes", "--rest-of", tmp_path).code == 2
    assert cli("restore", frozen.points[0], "--to", tmp_path / "x", "--readable", "--best-effort").code == 2
    assert frozen.requests() == []


def test_a_new_point_may_rest_on_an_archived_pack_and_says_so(
    cli: Cli,
    glacier_server: Glacier,
    glacier_settings: TierSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Old content that comes back is not stored once more: the rule of docs/tiers.md."""
    monkeypatch.setattr("vmcellar.crypto.passphrase.Argon2Cost", quick_cost)
    tiered = make_tiered(glacier_server, glacier_settings, tmp_path)
    repository = Repository.open(load_config(tmp_path / "vmcellar.yaml"))
    with ThreadPoolExecutor(1) as pool:
        again = back_up(repository, pool, [(0, tiered.disk[:MIB])], SIZE, time=time.time())
    repository.close()
    assert tiered.hot_packs == 0
    plan = json.loads(cli("restore", again.id, "--plan", "--json").out)["thaw"]
    assert plan["archived"]["packs"] == 2
    held = json.loads(cli("tiers", "move", "--json").out)["held"]
    assert [pack["why"] for pack in held] == ["it must be thawed before it can go to hot"] * 2
    assert cli("thaw", again.id, "--yes", "--speed", "expedited").code == 0
    glacier_server.advance(hours=0.1)
    assert cli("tiers", "move").code == 0
    assert tiered.hot_packs == 2
    glacier_server.advance(days=9)
    done = cli("restore", again.id, "--to", "out", "--format", "raw")
    assert done.code == 0, done.err
    assert (tmp_path / "out" / "vda.raw").read_bytes() == tiered.disk
