"""What a thief of the store, or of the whole backup host, can read: searched in the raw bytes, tried with the API."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import random
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3

from tests.faults.cellar import PASSPHRASE, PIECE, Cellar, stand_ins
from tests.faults.imagesource import DOMAIN
from vmcellar.backup import pipeline
from vmcellar.backup.model import BackupRequest
from vmcellar.cli import keywork
from vmcellar.crypto import slots
from vmcellar.crypto.base import EpochLockedError
from vmcellar.crypto.recipient import PrivateKey
from vmcellar.engine import Engine
from vmcellar.errors import VmcellarError
from vmcellar.repository.points import RestorePoint
from vmcellar.repository.repository import Repository
from vmcellar.repository.scrub import verify_all
from vmcellar.restore.report import RestoreTarget
from vmcellar.restore.restore import restore_point

VM = "payroll-database"
JOB = "nightly-finance"
SENTENCE = b"The merger is announced on Thursday. "
NOISE = random.Random(3).randbytes(PIECE)
DISK = (SENTENCE * 4000)[:PIECE] + NOISE + bytes(PIECE) + SENTENCE + random.Random(4).randbytes(PIECE - len(SENTENCE))
FRAME = b"\x28\xb5\x2f\xfd"


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in stand_ins():
        monkeypatch.setattr(module, name, value)


def filled(folder: Path, *, recipient: bool = False) -> Cellar:
    """A repository with a full and an incremental point of one VM."""
    folder.mkdir()
    cellar = Cellar(folder, recipient)
    cellar.make()
    for seed in (1, 2):
        cellar.source.write(VM, "vda", DISK + random.Random(seed).randbytes(PIECE))
        cellar.source.write(VM, "vdb", DISK[:PIECE])
        back_up(cellar)
    return cellar


def back_up(cellar: Cellar) -> None:
    engine = cellar.engine()
    try:
        pipeline.run(engine, BackupRequest(VM, job=JOB))
    finally:
        engine.cpu.shutdown()
        engine.repository.close()


def secrets_of(cellar: Cellar) -> dict[str, bytes]:
    """What nobody may find, by what it is; short words are left out, as random bytes hold them, too."""
    found = {"the VM's name": VM.encode(), "the job's name": JOB.encode(), "the domain XML": DOMAIN % VM.encode()}
    found |= {
        "text": SENTENCE.strip(),
        "data": NOISE[1000:1016],
        "more data": DISK[-40:-20],
        "passphrase": PASSPHRASE.encode(),
    }
    found |= {"disk": b"id-vda", "host": os.uname().nodename.encode(), "folder": str(cellar.folder).encode()}
    repository = Repository.open(cellar.config, cellar.private())
    for point in repository.points():
        found |= {f"checkpoint of {point.id}": point.checkpoint.encode(), f"run of {point.id}": point.run_id.encode()}
    repository.close()
    for start in range(0, len(DISK), PIECE):  # an id without a key would tell who has the same piece
        piece = DISK[start : start + PIECE]
        found |= {f"SHA-256 {start}": hashlib.sha256(piece).digest(), f"BLAKE3 {start}": blake3(piece).digest()}
    return {what: secret for what, secret in found.items() if len(secret) >= 6}


def forms(secret: bytes) -> Iterator[bytes]:
    """How the same bytes may stand in a file."""
    yield secret
    yield secret[::-1]
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    for shift in range(3):  # base64 depends on where in a group of three it begins
        whole = base64.b64encode(bytes(shift) + secret)
        yield whole[4 : len(whole) - 4]
    if secret.isascii():
        yield secret.decode().encode("utf-16-le")
        yield secret.decode().encode("utf-16-be")
        yield secret.upper()


def stands_in(secret: bytes, data: bytes) -> bool:
    return any(form in data for form in forms(secret) if len(form) >= 6)


def unpacked(data: bytes) -> Iterator[bytes]:
    """The bytes, and what any zstd frame in them holds: compressed is not hidden."""
    yield data
    place = data.find(FRAME)
    while place >= 0:
        with contextlib.suppress(zstandard.ZstdError):
            yield zstandard.ZstdDecompressor().decompressobj().decompress(data[place:])
        place = data.find(FRAME, place + 1)


def leaks(folders: Iterable[Path], secrets: dict[str, bytes]) -> list[str]:
    """Every secret that stands in a file or a name below these folders."""
    found = []
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            texts = [str(path.relative_to(folder)).encode()]
            if path.is_file():
                texts += unpacked(path.read_bytes())
            found += [
                f"{what} in {path}" for what, secret in secrets.items() if any(stands_in(secret, t) for t in texts)
            ]
    return found


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    """Else the tests below prove nothing."""
    secret = b"Thursday, in the morning"
    writings = [secret, secret.hex().encode(), base64.b64encode(b"x" + secret), secret.decode().encode("utf-16-le")]
    writings.append(b"junk" + zstandard.ZstdCompressor().compress(secret * 9) + b"junk")
    for number, data in enumerate(writings):
        (tmp_path / f"{number}").write_bytes(data)
    (tmp_path / secret.decode()).mkdir()
    assert len(leaks([tmp_path], {"it": secret})) == len(writings) + 1


@pytest.mark.parametrize("recipient", [False, True], ids=["passphrase", "recipient"])
def test_a_thief_of_the_store_finds_neither_data_nor_names(tmp_path: Path, recipient: bool) -> None:
    cellar = filled(tmp_path / "one", recipient=recipient)
    secrets = secrets_of(cellar)
    assert len(secrets) > 15
    assert leaks([cellar.hot], secrets) == []


def test_names_of_objects_tell_kinds_and_times_alone(tmp_path: Path) -> None:
    cellar = filled(tmp_path / "one")
    letters = set("0123456789abcdef-TZ/")
    for path in (path for path in cellar.hot.rglob("*") if path.is_file() and path.name != "config"):
        kind, _, name = str(path.relative_to(cellar.hot)).partition("/")
        assert kind in {"keys", "epochs", "data", "meta", "index", "points"}
        assert set(name) <= letters


def test_equal_disks_in_two_repositories_share_nothing(tmp_path: Path) -> None:
    """Neither ids of chunks and nodes, nor roots, nor names of objects, nor any stored block of 16 bytes."""
    ids, names, blocks = [], [], []
    for name in ("one", "two"):
        cellar = filled(tmp_path / name)
        repository = cellar.open()
        with repository.index._reading() as database:
            ids.append({row[0] for row in database.execute("SELECT chunk FROM entries")})
        ids[-1] |= {bytes.fromhex(disk.root) for point in repository.points() for disk in point.disks}
        repository.close()
        files = [path for path in cellar.hot.rglob("*") if path.is_file() and path.name != "config"]
        names.append({path.name for path in files})
        stored = [path.read_bytes() for path in files if path.parent.name != "keys"]
        blocks.append({data[place : place + 16] for data in stored for place in range(64, len(data) - 64, 16)})
    assert len(ids[0]) > 8
    assert not ids[0] & ids[1]
    assert not names[0] & names[1]
    assert blocks[0] & blocks[1] <= {bytes(16)}


class Thief:
    """Somebody who copied everything that is on the backup host of a repository in recipient mode, and its store."""

    def __init__(self, cellar: Cellar, folder: Path) -> None:
        shutil.copytree(cellar.folder, folder, ignore=shutil.ignore_patterns("vms", "private", "models"))
        (folder / "vms").mkdir()
        self.cellar = Cellar(folder)

    def open(self) -> Repository:
        return Repository.open(self.cellar.config)


@pytest.fixture
def thief(tmp_path: Path) -> Thief:
    return Thief(filled(tmp_path / "host", recipient=True), tmp_path / "thief")


def test_a_thief_of_the_host_finds_no_data_in_its_files(thief: Thief) -> None:
    """Neither in the state, nor in landings, nor in the index cache; names he does find: the metadata key is there."""
    data = {"text": SENTENCE.strip(), "data": NOISE[1000:1016], "more data": DISK[-40:-20]}
    assert leaks([thief.cellar.folder], data) == []


def nothing_is_read(repository: Repository, points: list[RestorePoint], folder: Path) -> None:
    """Every way to disk bytes is tried."""
    for point in points:
        with pytest.raises(VmcellarError) as refused:
            restore_point(repository, point, RestoreTarget(folder / f"{point.id}-strict", "raw"))
        assert isinstance(refused.value, EpochLockedError) or "do not open epoch" in str(refused.value)
        try:
            report = restore_point(repository, point, RestoreTarget(folder / point.id, "raw", best_effort=True))
        except VmcellarError:
            report = None
        for disk in report.disks if report else ():
            got = disk.path.read_bytes()
            assert SENTENCE not in got
            assert NOISE[:64] not in got
        for disk_record in point.disks:
            for rows in repository.map(disk_record).rows():
                for chunk in {row["chunk"].tobytes() for row in rows}:
                    with pytest.raises(EpochLockedError):
                        repository.read_objects([chunk])


def test_a_thief_of_the_host_reads_no_earlier_disk_through_the_api(thief: Thief, tmp_path: Path) -> None:
    repository = thief.open()
    points = repository.points()
    assert [point.vm for point in points] == [VM, VM], "what it needs to deduplicate and to list"
    nothing_is_read(repository, points, tmp_path / "out")
    assert not verify_all(repository, deep=True).ok
    assert slots.unlock_secrets(repository.tier, PASSPHRASE.encode()).data == ()
    repository.close()


def test_nor_after_he_backed_up_with_it(thief: Thief, tmp_path: Path) -> None:
    """A process that seals new packs has a key in memory; it opens its own packs alone."""
    thief.cellar.source.write(VM, "vda", DISK)  # he even knows what is on the disk
    engine = Engine(thief.cellar.config, thief.open(), thief.cellar.source)
    try:
        before = engine.repository.points()
        pipeline.run(engine, BackupRequest(VM, "full"))
        nothing_is_read(engine.repository, before, tmp_path / "out")
    finally:
        engine.cpu.shutdown()
        engine.repository.close()


def test_nor_as_a_recipient_of_his_own(thief: Thief, tmp_path: Path) -> None:
    """`vmcellar key add` takes any recipient, but nobody on the host can give it the earlier keys."""
    pair = PrivateKey.generate()
    (tmp_path / "his.pub").write_bytes(pair.public.to_file())
    _, locked = keywork.add_recipient(thief.cellar.config, tmp_path / "his.pub", None, "mallory")
    assert locked == 2
    repository = Repository.open(thief.cellar.config, pair)
    nothing_is_read(repository, repository.points(), tmp_path / "out")
    repository.close()


def test_nor_with_the_paper_key_of_the_host(thief: Thief, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet"
    sheet.write_text(keywork.paper_key(thief.cellar.config, None))
    (tmp_path / "new").write_text("his own passphrase")
    keywork.add_passphrase(thief.cellar.config, tmp_path / "new", sheet, "")
    thief.cellar.folder.joinpath("passphrase").write_text("his own passphrase")
    repository = thief.open()
    nothing_is_read(repository, repository.points(), tmp_path / "out")
    repository.close()


def test_the_private_key_reads_it_all(tmp_path: Path) -> None:
    """The same calls, so that the tests above fail for want of a key and for nothing else."""
    cellar = filled(tmp_path / "host", recipient=True)
    repository = Repository.open(cellar.config, cellar.private())
    for point in repository.points():
        report = restore_point(repository, point, RestoreTarget(tmp_path / point.id, "raw"))
        assert report.disks[0].path.read_bytes().startswith(DISK)
    assert verify_all(repository, deep=True).ok
    repository.close()
