"""`vmcellar serve`: what NBD clients read is the disk, byte for byte, and what is damaged is an error with a name."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from lab.require import requires
from tests.restore.served_world import config_of, serving
from tests.restore.world import World, changed_disk, random_disk
from vmcellar.errors import IntegrityError, PermanentError, VmcellarError
from vmcellar.repository import leases
from vmcellar.restore.serve import Address, Opening, Server
from vmcellar.restore.served_chunks import ChunkCache
from vmcellar.restore.served_disk import ServedDisk

MIB = 1 << 20


def run(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=check)


def disk_packs(world: World) -> list[Path]:
    """The packs that hold the disks, without that of the artifacts."""
    return [path for path in sorted(world.settings.hot.glob("data/*/*")) if path.stat().st_size > MIB]


def damage_disk_packs(world: World) -> None:
    """Flip a bit in the first object of each."""
    for pack in disk_packs(world):
        data = bytearray(pack.read_bytes())
        data[8192] ^= 1
        pack.chmod(0o600)
        pack.write_bytes(data)


def test_clients_read_the_disks_byte_for_byte(world: World, tmp_path: Path) -> None:
    requires("nbdkit-python")
    rng = random.Random(51)
    vda, vdb = random_disk(rng, 24 * MIB), random_disk(rng, 3 * MIB + 512)
    world.add({"vda": vda, "vdb": vdb})
    vda = changed_disk(rng, vda, 26 * MIB)
    point = world.add({"vda": vda, "vdb": vdb})
    models = {"vda": vda, "vdb": vdb}
    with serving(world, point, tmp_path / "nbd.sock") as uris:
        assert sorted(uris) == ["vda", "vdb"]
        for target, uri in uris.items():
            copied, converted = tmp_path / f"{target}.copied", tmp_path / f"{target}.converted"
            run("nbdcopy", uri, copied)
            run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, converted)
            assert copied.read_bytes() == models[target]
            run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", copied, converted)
        clients = [subprocess.Popen(["nbdcopy", uris["vda"], str(tmp_path / f"again{number}")]) for number in range(4)]
        assert [client.wait() for client in clients] == [0, 0, 0, 0]
    assert all((tmp_path / f"again{number}").read_bytes() == vda for number in range(4))
    assert (world.settings.state / "restore-bandwidth" / "hot").stat().st_size > 0, "the server pays for what it reads"
    assert not (tmp_path / "nbd.sock").exists()


def test_holes_are_told_and_nothing_can_be_written(world: World, tmp_path: Path) -> None:
    requires("nbdkit-python")
    rng = random.Random(52)
    data = rng.randbytes(2 * MIB) + bytes(5 * MIB) + rng.randbytes(MIB)
    point = world.add({"vda": data})
    with serving(world, point, tmp_path / "nbd.sock") as uris:
        told = json.loads(run("nbdinfo", "--map", "--json", uris["vda"]).stdout)
        facts = json.loads(run("nbdinfo", "--json", uris["vda"]).stdout)["exports"][0]
    assert [(item["offset"], item["length"], item["type"]) for item in told] == [
        (0, 2 * MIB, 0),
        (2 * MIB, 5 * MIB, 3),
        (7 * MIB, MIB, 0),
    ]
    assert facts["is_read_only"]
    assert facts["export-size"] == 8 * MIB


def test_a_damaged_chunk_is_an_io_error_and_is_named(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    requires("nbdkit-python")
    point = world.add({"vda": random.Random(53).randbytes(6 * MIB)})
    damage_disk_packs(world)
    opening = Opening(config_of(world))
    with Server(world.repository, opening, point, point.disks, Address(tmp_path / "nbd.sock")) as server:
        assert server.read_errors == {}
        done = run("nbdcopy", server.uris()["vda"], tmp_path / "copy", check=False)
        whole = run("qemu-io", "-r", "-f", "raw", "-c", "read 2M 64k", server.uris()["vda"])
        met = server.read_errors
    assert done.returncode != 0
    assert "Input/output error" in done.stderr
    assert "read 65536/65536" in whole.stdout
    assert list(met) == [IntegrityError], "as who drills must know"
    assert met[IntegrityError].startswith("vm: disk vda at byte ")
    log = capfd.readouterr().err
    assert "error: vm: disk vda at byte " in log
    assert "pack data/" in log


def test_a_lease_is_held_while_serving(world: World, tmp_path: Path) -> None:
    requires("nbdkit-python")
    point = world.add({"vda": random.Random(54).randbytes(MIB)})
    repository = world.repository
    with serving(world, point, tmp_path / "nbd.sock"):
        held = leases.found(repository.tier, repository.keyring)
    assert [lease.newest.what for lease in held] == ["serve vm"]
    assert leases.found(repository.tier, repository.keyring) == []


def test_a_taken_socket_and_a_dropped_point_are_refused(world: World, tmp_path: Path) -> None:
    requires("nbdkit-python")
    point = world.add({"vda": random.Random(55).randbytes(MIB)})
    taken = tmp_path / "taken"
    taken.touch()
    opening = Opening(config_of(world))
    with (
        pytest.raises(PermanentError, match="exists already"),
        Server(world.repository, opening, point, point.disks, Address(taken)),
    ):
        pass
    assert taken.exists()
    world.repository.tier.delete(f"points/{point.id}")
    with (
        pytest.raises(PermanentError, match="dropped meanwhile"),
        Server(world.repository, opening, point, point.disks, Address(tmp_path / "free")),
    ):
        pass
    assert leases.found(world.repository.tier, world.repository.keyring) == []


def test_the_command_serves_until_ctrl_c(world: World, tmp_path: Path) -> None:
    requires("nbdkit-python")
    data = random.Random(56).randbytes(2 * MIB)
    point = world.add({"vda": data})
    command = [sys.executable, "-m", "vmcellar.cli.main", "serve", point.id, "-c", str(config_of(world)), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = iter(process.stdout.readline, "}\n")
        uri = json.loads("".join(lines) + "}")["disks"]["vda"]
        run("nbdcopy", uri, tmp_path / "copy")
        os.kill(process.pid, signal.SIGINT)
        said = process.stderr.read()
        assert process.wait() == 0, said
    assert (tmp_path / "copy").read_bytes() == data
    assert not Path(uri.partition("socket=")[2]).parent.exists()
    assert leases.found(world.repository.tier, world.repository.keyring) == []


def test_reads_at_any_offset_side_by_side_within_the_cache_budget(world: World) -> None:
    rng = random.Random(57)
    data = random_disk(rng, 20 * MIB)
    world.add({"vda": data})
    data = changed_disk(rng, data, len(data))
    point = world.add({"vda": data})
    chunks = ChunkCache(world.repository, limit=3 * MIB)
    disk = ServedDisk(world.repository, "vm", point.disk("vda"), chunks)
    places = [(rng.randrange(len(data)), rng.choice((1, 512, 4096, 70_000, 6 * MIB))) for _ in range(200)]

    def read(place: tuple[int, int]) -> bool:
        expected = data[place[0] : place[0] + place[1]]
        buffer = bytearray(b"\xee" * len(expected))
        disk.read_into(place[0], memoryview(buffer))
        return buffer == expected and chunks.held <= 3 * MIB

    with ThreadPoolExecutor(8) as clients:
        assert all(clients.map(read, places))
    chunks.close()


def test_what_comes_next_is_fetched_ahead(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    point = world.add({"vda": random.Random(58).randbytes(16 * MIB)})
    chunks = ChunkCache(world.repository)
    fetch = chunks.fetch_ahead
    begun: list[Future[None]] = []

    def watched(wanted: Callable[[], Sequence[bytes]]) -> None:
        future = fetch(wanted)
        assert future is not None
        begun.append(future)

    monkeypatch.setattr(chunks, "fetch_ahead", watched)
    disk = ServedDisk(world.repository, "vm", point.disk("vda"), chunks)
    disk.read_into(0, memoryview(bytearray(64 << 10)))
    wait(begun)
    assert chunks.held == 9 * MIB  # the chunk that was asked for, and what lies within 8 MiB after it
    disk.read_into(12 * MIB, memoryview(bytearray(64 << 10)))
    assert len(begun) == 1  # a jump fetches nothing else
    assert chunks.held == 10 * MIB
    chunks.close()


def test_a_pack_that_has_gone_is_named(world: World) -> None:
    data = random.Random(60).randbytes(2 * MIB)
    point = world.add({"vda": data})
    chunks = ChunkCache(world.repository)
    disk = ServedDisk(world.repository, "vm", point.disk("vda"), chunks)
    for pack in disk_packs(world):
        pack.unlink()
    with pytest.raises(VmcellarError, match="vm: disk vda at byte 0: "):
        disk.read_into(0, memoryview(bytearray(MIB)))
    chunks.close()


def test_an_error_is_not_kept(world: World, tmp_path: Path) -> None:
    data = random.Random(59).randbytes(2 * MIB)
    point = world.add({"vda": data})
    (pack,) = disk_packs(world)
    content = pack.read_bytes()
    damage_disk_packs(world)
    chunks = ChunkCache(world.repository)
    disk = ServedDisk(world.repository, "vm", point.disk("vda"), chunks)
    buffer = bytearray(len(data))
    with pytest.raises(IntegrityError, match="vm: disk vda at byte 0: pack data/"):
        disk.read_into(0, memoryview(buffer))
    mended = tmp_path / "mended"
    mended.write_bytes(content)
    mended.rename(pack)
    disk.read_into(0, memoryview(buffer))
    assert buffer == data
    chunks.close()
