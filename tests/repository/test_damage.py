"""One flipped bit in every class of bytes of every kind of object, cuts at every border, objects that changed places:
a deep scrub (or opening the repository) names it, and a restore is right or ends with an error, never wrong in silence.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest

from tests.crypto.store import CHEAP
from tests.restore.world import Settings, World, changed_disk, random_disk
from vmcellar.crypto import passphrase, slots
from vmcellar.errors import IntegrityError, PermanentError, VmcellarError
from vmcellar.repository import drops, layout, leases, marks
from vmcellar.repository.repository import Repository
from vmcellar.repository.scrub import verify_all
from vmcellar.restore.report import RestoreTarget
from vmcellar.restore.restore import restore_point
from vmcellar.tiers.local import LocalTier
from vmcellar.tiers.mark import check_mark, write_mark
from vmcellar.upkeep import gc, pins

MIB = 1 << 20
SEALED = {"magic": 0, "version": 8, "zero": 10, "nonce": 16, "sealed": 30, "tag": -16, "end": -1}
KINDS = ("config", "keys", "epochs", "data", "meta", "index", "points")


@dataclass(frozen=True)
class Whole:
    """A repository of every kind of object, and what its files hold."""

    world: World
    files: dict[Path, bytes]

    def of(self, kind: str) -> list[Path]:
        return sorted(path for path in self.files if path.relative_to(self.world.settings.hot).parts[0] == kind)

    def put_back(self) -> None:
        """Undo what a test changed, also what a scrub noted."""
        hot = self.world.settings.hot
        for path in [path for path in hot.rglob("*") if path.is_file()]:
            if path not in self.files:
                path.unlink()
        for path, data in self.files.items():
            if not path.exists() or path.read_bytes() != data:
                overwrite(path, data)


def overwrite(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(data)


@pytest.fixture(scope="module")
def whole() -> Iterator[Whole]:
    """Two points of two disks, by two processes, in packs that hold several objects."""
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        real = passphrase.Argon2Cost
        patch.setattr(passphrase, "Argon2Cost", lambda *costs: real(*costs) if costs else CHEAP)
        settings = Settings(Path(folder) / "state", Path(folder) / "hot")
        world = World(settings, Repository.init(settings), pool)
        dice = Random(5)
        disk = random_disk(dice, 2 * MIB)
        world.add({"vda": disk, "vdb": disk[:MIB]})
        world.repository.close()
        world.repository = Repository.open(settings)  # the next process, with an epoch of its own
        world.add({"vda": changed_disk(dice, disk, 2 * MIB), "vdb": disk[:MIB]})
        world.repository.close()
        yield Whole(world, {path: path.read_bytes() for path in settings.hot.rglob("*") if path.is_file()})


@pytest.fixture
def damaged(whole: Whole) -> Iterator[Whole]:
    """For a test that does damage."""
    yield whole
    whole.put_back()


def classes(kind: str, data: bytes) -> dict[str, int]:
    """One place of every class of bytes."""
    if kind in ("config", "keys"):
        return {f"byte {place}": place for place in range(0, len(data), 11)}
    if kind not in ("data", "meta"):
        return {name: place % len(data) for name, place in SEALED.items()}
    toc, length = struct.unpack_from("<QI", data, len(data) - 56)
    row, end = toc + 12 + layout.HEADER_BYTES, toc + length
    stored = struct.unpack_from("<I", data, len(data) - 48)[0]
    assert stored == length
    found = {"magic": 0, "version": 8, "kind": 10, "zero": 11, "pack id": 16, "epoch": 32, "header's end": 63}
    found |= {
        "object": 64,
        "object's middle": (64 + toc) // 2,
        "last tag": toc - 1,
        "toc nonce": toc,
        "toc header": toc + 12,
    }
    found |= {
        "row": row,
        "row offset": row + 32,
        "row stored": row + 36,
        "row length": row + 40,
        "row method": row + 44,
    }
    found |= {"row what": row + 45, "row zero": row + 46, "toc tag": end - 1, "padding": end, "padding's end": -65}
    found |= {"trailer": -64, "toc offset": -56, "toc length": -48, "rows": -44, "id": -40, "digest": -16, "end": -1}
    return {name: place % len(data) for name, place in found.items()}


def opened(whole: Whole, folder: Path) -> Repository:
    """On a host that has never seen it."""
    return Repository.open(replace(whole.world.settings, state=folder / "state"), refresh=False)


def is_found(whole: Whole, folder: Path) -> bool:
    """Whether opening it, or a deep scrub, tells of damage."""
    try:
        repository = opened(whole, folder)
    except VmcellarError as error:
        assert error.message
        return True
    try:
        return not verify_all(repository, deep=True).ok
    finally:
        repository.close()


def restores_are_right_or_fail(whole: Whole, folder: Path) -> None:
    """Each point: the disks of its model, or an error of ours; with best effort, right but for the ranges it lists."""
    try:
        repository = opened(whole, folder)
    except VmcellarError:
        return
    try:
        for number, (point_id, disks) in enumerate(whole.world.models.items()):
            for best_effort in (False, True):
                target = RestoreTarget(folder / f"{number}-{best_effort}", "raw", best_effort=best_effort)
                try:
                    report = restore_point(repository, repository.point(point_id), target)
                except VmcellarError as error:
                    assert error.message
                    continue
                assert best_effort or not report.lost
                for disk in report.disks:
                    expected, got = bytearray(disks[disk.target]), bytearray(disk.path.read_bytes())
                    assert len(got) == len(expected)
                    for lost in (lost for lost in report.lost if lost.target == disk.target):
                        nothing = bytes(lost.length)
                        expected[lost.offset : lost.offset + lost.length] = nothing
                        got[lost.offset : lost.offset + lost.length] = nothing
                    assert got == expected, f"{disk.target} is wrong in silence"
    finally:
        repository.close()


def check(whole: Whole, tmp_path: Path, what: str) -> None:
    with TemporaryDirectory(dir=tmp_path) as folder:
        assert is_found(whole, Path(folder)), f"{what} is not found"
        restores_are_right_or_fail(whole, Path(folder))


def test_without_damage_nothing_is_found(whole: Whole, tmp_path: Path) -> None:
    assert not is_found(whole, tmp_path)
    restores_are_right_or_fail(whole, tmp_path)
    assert {kind: len(whole.of(kind)) > 0 for kind in KINDS} == dict.fromkeys(KINDS, True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit(damaged: Whole, tmp_path: Path, kind: str) -> None:
    dice = Random(kind)
    path = max(damaged.of(kind), key=lambda path: len(damaged.files[path]))
    data = damaged.files[path]
    for name, place in classes(kind, data).items():
        changed = bytearray(data)
        changed[place] ^= 1 << dice.randrange(8)
        overwrite(path, bytes(changed))
        check(damaged, tmp_path, f"{path.name}: {name}, byte {place}")
        damaged.put_back()


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_an_empty_a_longer_and_a_missing_object(damaged: Whole, tmp_path: Path, kind: str) -> None:
    path = max(damaged.of(kind), key=lambda path: len(damaged.files[path]))
    data = damaged.files[path]
    lengths = {0, 1, len(data) - 1, len(data) // 2, *(place for place in list(classes(kind, data).values())[::4])}
    longer = [data + b"\0", data + bytes(4096), data + data]
    for changed in [*(data[:length] for length in sorted(lengths)), *longer]:
        overwrite(path, changed)
        check(damaged, tmp_path, f"{path.name}: {len(changed)} instead of {len(data)} bytes")
    if kind not in (
        "index",
        "points",
    ):  # what rebuild-index makes again, and what nobody can miss: see the threat model
        path.unlink()
        check(damaged, tmp_path, f"{path.name}: missing")


@pytest.mark.parametrize("kind", ["data", "meta", "index", "points", "epochs"])
def test_an_object_in_the_place_of_another(damaged: Whole, tmp_path: Path, kind: str) -> None:
    one, *others = damaged.of(kind)
    assert others, "two are needed"
    overwrite(one, damaged.files[others[-1]])
    check(damaged, tmp_path, f"{one.name} holds {others[-1].name}")


def test_a_missing_index_part_loses_nothing_in_silence(damaged: Whole, tmp_path: Path) -> None:
    damaged.of("index")[0].unlink()
    assert is_found(damaged, tmp_path), "what only that part named cannot be found any more"
    restores_are_right_or_fail(damaged, tmp_path)


@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_leases_marks_and_pins(damaged: Whole, tmp_path: Path, how: str) -> None:
    """No restore needs them: damage stops gc, is said by `vmcellar pin`, and never frees what it protected."""
    repository = opened(damaged, tmp_path)
    repository.index.refresh()
    point = repository.points()[0]
    pins.pin(repository, point, "keep")
    marks.write(repository.tier, repository.keyring, 1.8e9, [(layout.KIND_DATA, b"x" * 16)])
    hot = damaged.world.settings.hot
    with leases.holding(repository.tier, repository.keyring, "restore"):
        for path in (*(hot / "pins").iterdir(), *(hot / "gc").iterdir(), *(hot / "leases").iterdir()):
            data = path.read_bytes()
            for place in classes("lease", data).values():
                changed = bytearray(data)
                changed[place] ^= 4
                overwrite(path, bytes(changed) if how == "flipped" else data[:place])
                if path.parent.name == "pins":
                    assert [(each.point, each.pin) for each in pins.listed(repository)] == [(point.id, None)]
                    assert pins.pinned(repository) == {point.id}
                elif path.parent.name == "gc":
                    with pytest.raises(IntegrityError):
                        repository.index.refresh(writing=True)
                elif path.name.endswith("1"):
                    with pytest.raises(IntegrityError):
                        gc.collect(repository, dry_run=True)
            overwrite(path, data)
    repository.close()


@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_notes_of_deletions(damaged: Whole, tmp_path: Path, how: str) -> None:
    """A damaged one counts, as somebody may be deleting a copy of that pack, until a person removes it."""
    repository = opened(damaged, tmp_path)
    tier, keyring = repository.tier, repository.keyring
    pack = f"data/aa/{'aa' * 16}"
    with drops.announced(tier, keyring, pack, lambda: 0.0):
        (path,) = (damaged.world.settings.hot / "drops").iterdir()
        data = path.read_bytes()
    overwrite(path, data)  # what a process that died has left, a week and more ago
    assert drops.found(tier, keyring, 1e6, clear=False) == {}
    for place in classes("drop", data).values():
        changed = bytearray(data)
        changed[place] ^= 4
        overwrite(path, bytes(changed) if how == "flipped" else data[:place])
        (said,) = drops.found(tier, keyring, 1e6, clear=True).values()
        assert path.name in said
        assert path.exists()
    repository.close()


def test_the_mark_of_a_tier(damaged: Whole, tmp_path: Path) -> None:
    """With any other bit or length it is another repository's, and nothing is done with that tier."""
    hot, other = LocalTier(damaged.world.settings.hot), LocalTier(tmp_path)
    write_mark(hot, other)
    check_mark(hot, other)
    data = (tmp_path / "mirror").read_bytes()
    flipped = (data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] for place in range(len(data)))
    for changed in [*flipped, data[:-1], b"", data + b"0"]:
        overwrite(tmp_path / "mirror", changed)
        for refuse in (check_mark, write_mark):
            with pytest.raises(PermanentError):
                refuse(hot, other)
    assert (tmp_path / "mirror").exists()


def test_a_damaged_slot_of_somebody_else_is_listed_as_damaged(damaged: Whole) -> None:
    """Another passphrase still opens the repository, so only `vmcellar key list` tells."""
    tier = damaged.world.repository.tier
    secrets = slots.unlock_secrets(tier, damaged.world.settings.key.read())
    slot = slots.add_passphrase(tier, secrets, b"another", CHEAP)
    path = damaged.world.settings.hot / "keys" / slot
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        changed = bytearray(data)
        changed[place] ^= 2
        overwrite(path, bytes(changed))
        kinds = {info.id: info.kind for info in slots.list_slots(tier)}
        assert kinds[slot] in ("damaged", "newer")
