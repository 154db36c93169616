"""docs/restore-by-hand.md is typed line by line, and the stand-alone reader meets damage of every kind.

The reader must give the right disk or say what is missing; never a wrong byte, never a traceback.
"""

from __future__ import annotations

import ast
import errno
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from lab.require import requires
from tests.crypto.store import CHEAP
from tests.repository.make_fixture import CHANGE, FULL, PASSPHRASE, SIZE
from tests.repository.writing import back_up
from vmcellar.crypto import paper, slots
from vmcellar.crypto.recipient import PrivateKey
from vmcellar.repository.repository import Repository, make, unlock
from vmcellar.tiers.local import LocalTier

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "restore-by-hand.md"
READER = ROOT / "tools" / "read_vmcellar.py"
FIXTURE = ROOT / "tests" / "repository" / "fixtures" / "v1"
DIGESTS: dict[str, str] = json.loads(FIXTURE.with_suffix(".json").read_text())
FIRST, LATEST = sorted(DIGESTS)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def commands() -> list[str]:
    return [line.strip()[2:] for line in PAGE.read_text().splitlines() if line.startswith("    $ ")]


@pytest.fixture(scope="module")
def private() -> PrivateKey:
    return PrivateKey.generate()


def sealed_repository(folder: Path, private: PrivateKey) -> None:
    """One in recipient mode, with the fixture's first disk."""
    folder.mkdir(parents=True)
    tier = LocalTier(folder)
    make(tier, b"the host's own", [private.public])
    keyring, repository_id = unlock(tier, b"the host's own")
    repository = Repository(tier, keyring, repository_id, folder.with_name("cache"))
    with ThreadPoolExecutor(1) as pool:
        back_up(repository, pool, FULL, SIZE)
    repository.close()


@pytest.fixture
def host(tmp_path: Path, private: PrivateKey) -> Path:
    """A file tree with everything that the page names."""
    root = tmp_path / "root"
    root.mkdir()
    shutil.copytree(FIXTURE, tmp_path / "srv/vmcellar/hot")
    shutil.copytree(FIXTURE, tmp_path / "mnt/copy")
    sealed_repository(tmp_path / "mnt/sealed", private)
    shutil.copy(READER, root)
    (root / "passphrase").write_bytes(PASSPHRASE + b"\n")
    (root / "me.key").write_bytes(private.to_file(b"at home", CHEAP))
    (root / "me.passphrase").write_bytes(b"at home\n")
    secrets = slots.unlock_secrets(LocalTier(FIXTURE), PASSPHRASE)
    (root / "paper.txt").write_text(paper.export(secrets, "the example").lower())
    (root / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (root / "python3").chmod(0o755)
    return tmp_path


def type_in(host: Path, command: str) -> subprocess.CompletedProcess[str]:
    for folder in ("/srv", "/root", "/mnt"):
        command = command.replace(f" {folder}/", f" {host}{folder}/")
    path = f"{host / 'root'}:/usr/bin:/bin"
    return subprocess.run(
        ["sh", "-c", command], cwd=host / "root", env={"PATH": path}, capture_output=True, text=True, check=False
    )


def test_every_command_of_the_page_does_what_it_says(host: Path) -> None:
    requires("qemu-img")
    typed = commands()
    assert len(typed) >= 14
    output = {}
    for command in typed:
        done = type_in(host, command)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        output[command] = done.stdout + done.stderr
    assert f"{LATEST}  web  incremental, crash  disks: vda {SIZE}" in output[typed[0]]
    root = host / "root"
    assert digest(root / "vda.raw") == DIGESTS[LATEST]
    assert digest(root / "first.raw") == digest(root / "sealed.raw") == DIGESTS[FIRST]
    assert (root / "vda.raw").stat().st_blocks * 512 < SIZE // 4, "the image is sparse"
    assert sorted(path.name for path in (root / "web").iterdir()) == ["domain.xml", "kernel"]
    assert any("lost: disk vda" in text and "some ranges are lost" in text for text in output.values())
    assert list(root.glob("*.part")) == []


def test_the_reader_stands_alone() -> None:
    """Standard library, zstandard, cryptography; blake3 if it is there."""
    roots = set()
    for node in ast.walk(ast.parse(READER.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add(str(node.module).split(".")[0])
    assert roots - set(sys.stdlib_module_names) == {"zstandard", "cryptography", "blake3"}


def test_without_blake3_it_says_so_and_restores(host: Path) -> None:
    arguments = [str(FIXTURE), "--passphrase-file", "passphrase", "disk", LATEST, "vda", "out.raw"]
    code = f"import sys, runpy; sys.modules['blake3'] = None; sys.argv = ['reader', *{arguments}]; runpy.run_path('read_vmcellar.py', run_name='__main__')"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", code], cwd=host / "root", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "blake3 is not installed" in done.stderr
    assert digest(host / "root" / "out.raw") == DIGESTS[LATEST]


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("--passphrase-file /root/me.passphrase", "no key slot opens with this passphrase"),
        ("--identity /root/me.key --identity-passphrase-file /root/passphrase", "does not open with this passphrase"),
        ("--identity /root/me.key --identity-passphrase-file /root/me.passphrase", "no slot keys/"),
        ("--paper /root/passphrase", "the paper key is not whole"),
        ("--passphrase-file /root/nothing", "No such file"),
    ],
)
def test_a_wrong_key_is_one_line_and_exit_code_1(host: Path, key: str, says: str) -> None:
    done = type_in(host, f"python3 read_vmcellar.py /mnt/copy {key} list")
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mistyped_paper_line_is_named(host: Path) -> None:
    sheet = host / "root" / "paper.txt"
    lines = sheet.read_text().splitlines()
    lines[4] = lines[4][:6] + ("a" if lines[4][6] != "a" else "b") + lines[4][7:]
    sheet.write_text("\n".join(lines))
    done = type_in(host, "python3 read_vmcellar.py /mnt/copy --paper /root/paper.txt list")
    assert done.returncode == 1
    assert "line 2 of the paper key is mistyped" in done.stderr


def test_a_backup_hosts_passphrase_lists_but_reads_no_disk_in_recipient_mode(host: Path) -> None:
    (host / "root" / "passphrase").write_text("the host's own")
    base = "python3 read_vmcellar.py /mnt/sealed --passphrase-file /root/passphrase"
    listed = type_in(host, f"{base} list")
    assert (listed.returncode, "web  full" in listed.stdout) == (0, True)
    done = type_in(host, f"{base} disk web@latest vda /root/stolen.raw")
    assert done.returncode == 1
    assert "no key at hand opens epoch" in done.stderr
    assert list((host / "root").glob("stolen*")) == []


def test_an_image_is_never_replaced(host: Path) -> None:
    (host / "root" / "vda.raw").write_text("mine")
    base = "python3 read_vmcellar.py /mnt/copy --passphrase-file /root/passphrase"
    done = type_in(host, f"{base} disk web@latest vda /root/vda.raw")
    assert done.returncode == 1
    assert "vda.raw exists" in done.stderr
    assert (host / "root" / "vda.raw").read_text() == "mine"
    assert "has no disk vdz" in type_in(host, f"{base} disk web@latest vdz /root/z.raw").stderr
    assert "0 points are named db@latest" in type_in(host, f"{base} disk db@latest vda /root/z.raw").stderr
    assert "2 points are named 2027" in type_in(host, f"{base} disk 2027 vda /root/z.raw").stderr


# Damage: in this process, so that hundreds of restores cost seconds.


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    spec = importlib.util.spec_from_file_location("read_vmcellar", READER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def secrets(reader: ModuleType) -> bytes:
    found: bytes = reader.keys_by_passphrase([FIXTURE], PASSPHRASE).secrets
    return found


@cache
def expected_disk() -> NDArray[np.uint8]:
    image = bytearray(SIZE)
    for offset, content in [*FULL, *CHANGE]:
        data = bytes(content) if isinstance(content, int) else content
        image[offset : offset + len(data)] = data
    assert hashlib.sha256(image).hexdigest() == DIGESTS[LATEST]
    return np.frombuffer(bytes(image), np.uint8)


@cache
def sectors_with_data() -> NDArray[np.bool_]:
    return np.asarray(expected_disk().reshape(-1, 512).any(axis=1))


def assert_right(image: Path, *, whole: bool) -> None:
    """Every byte is the disk's; where something was lost it may be zero instead. Holes are not read."""
    unread = sectors_with_data().copy()
    with image.open("rb") as file:
        assert os.fstat(file.fileno()).st_size == SIZE
        for start, end in data_extents(file.fileno()):
            found = np.frombuffer(os.pread(file.fileno(), end - start, start), np.uint8)
            differs = found != expected_disk()[start:end]
            assert not found[differs].any()
            assert not (whole and differs.any())
            unread[start // 512 : end // 512] = False
    assert not (whole and unread.any()), "a hole where the disk has data"


def data_extents(file: int) -> Iterator[tuple[int, int]]:
    end = 0
    while True:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == errno.ENXIO, "no data any more"
            return
        end = os.lseek(file, start, os.SEEK_HOLE)
        yield start, end


class Attempt:
    """Restores the latest point from folders; `code` None stands for a named loss."""

    def __init__(self, reader: ModuleType, secrets: bytes, output: Path) -> None:
        self.reader, self.secrets, self.output = reader, secrets, output

    def __call__(self, *folders: Path, best_effort: bool = False) -> int | None:
        self.output.unlink(missing_ok=True)
        try:
            repository = self.reader.Repository(list(folders), self.reader.keys_of(self.secrets))
            code: int = self.reader.restore_disk(repository, LATEST, "vda", self.output, best_effort)
        except self.reader.Damage:
            assert list(self.output.parent.glob(self.output.name + "*")) == [], "nothing is left"
            return None
        assert_right(self.output, whole=code == 0)
        return code


@pytest.fixture
def attempt(reader: ModuleType, secrets: bytes, tmp_path: Path) -> Attempt:
    return Attempt(reader, secrets, tmp_path / "out.raw")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "v1"))


def damages(data: bytes) -> Iterator[bytes]:
    """Truncations, and flips at the begin, at the end and between."""
    size = len(data)
    yield from (b"", data[: size // 2], data[:-1])
    for place in sorted({0, 9, 10, 40, 70, size // 3, size // 2, size - 200, size - 60, size - 40, size - 1}):
        if 0 <= place < size:
            yield data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]


OBJECTS = sorted(str(path.relative_to(FIXTURE)) for path in FIXTURE.rglob("*") if path.is_file())


def test_latest_is_not_an_older_point_when_the_newest_cannot_be_read(attempt: Attempt, kept: Path) -> None:
    repository = attempt.reader.Repository([kept], attempt.reader.keys_of(attempt.secrets))
    assert repository.point("web@latest")["id"] == LATEST
    (kept / "points" / LATEST).write_bytes(b"")
    with pytest.raises(attempt.reader.Damage, match=f"{LATEST} cannot be read and may be web@latest"):
        repository.point("web@latest")
    assert repository.point(FIRST)["id"] == FIRST


def test_images_are_nobody_elses_to_read_and_a_full_disk_leaves_nothing(
    attempt: Attempt, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert attempt(kept) == 0
    assert attempt.output.stat().st_mode & 0o777 == 0o600
    attempt.output.unlink()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(attempt.reader.os, "fsync", full)
    repository = attempt.reader.Repository([kept], attempt.reader.keys_of(attempt.secrets))
    with pytest.raises(OSError, match="no space left"):
        attempt.reader.restore_disk(repository, LATEST, "vda", attempt.output, False)
    assert list(attempt.output.parent.glob(attempt.output.name + "*")) == []


@pytest.mark.parametrize("name", OBJECTS)
def test_a_damaged_object_costs_nothing_or_is_named(attempt: Attempt, kept: Path, name: str) -> None:
    data = (kept / name).read_bytes()
    for changed in damages(data):
        (kept / name).write_bytes(changed)
        attempt(kept)
        assert attempt(kept, FIXTURE) == 0, "a whole copy elsewhere mends it"
        assert attempt(kept, best_effort=True) in (0, 1, None)
    (kept / name).unlink()
    attempt(kept)
    assert attempt(kept, FIXTURE) == 0
    if name.startswith(("index", "config")):
        assert attempt(kept) == 0, "neither is needed"


def test_a_table_of_contents_is_lost_and_the_index_helps(attempt: Attempt, kept: Path) -> None:
    for path in [*kept.glob("data/*/*"), *kept.glob("meta/*/*")]:
        data = path.read_bytes()
        path.write_bytes(data[:-64] + bytes(64))
    assert attempt(kept) == 0
    shutil.rmtree(kept / "index")
    assert attempt(kept) is None, "now neither says where anything lies"


def test_two_halves_of_a_repository_make_a_whole(attempt: Attempt, kept: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(FIXTURE, tmp_path / "other"))
    packs = sorted(str(path.relative_to(kept)) for path in [*kept.glob("data/*/*"), *kept.glob("meta/*/*")])
    for number, name in enumerate(packs):
        ((kept, other)[number % 2] / name).unlink()
    assert attempt(kept) is None
    assert attempt(other) is None
    assert attempt(kept, other) == 0


def test_objects_that_were_swapped_are_found(attempt: Attempt, kept: Path) -> None:
    """Each under the other's name: a replay by somebody who can write to the storage."""
    for folder in ("points", "index", "epochs", "data", "meta"):
        files = sorted(path for path in (kept / folder).rglob("*") if path.is_file())
        one, two = files[0], files[-1]
        first, second = one.read_bytes(), two.read_bytes()
        one.write_bytes(second)
        two.write_bytes(first)
        attempt(kept)
        one.write_bytes(first)
        two.write_bytes(second)
    assert attempt(kept) == 0


def test_a_point_that_is_sealed_but_not_signed_is_refused(
    attempt: Attempt, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sealed by somebody who has the metadata key and not the signing key."""
    keyring, _ = unlock(LocalTier(kept), PASSPHRASE)
    path = kept / "points" / LATEST
    plain = keyring.open_meta(b"point", LATEST.encode(), path.read_bytes()[16:])
    forged = plain.replace(b'"vda"', b'"vdb"')
    assert forged != plain
    path.write_bytes(path.read_bytes()[:16] + keyring.seal_meta(b"point", LATEST.encode(), forged))
    assert attempt(kept) is None
    assert "the signature is not this repository's" in capsys.readouterr().err


def test_content_that_is_not_what_its_id_says_is_refused(reader: ModuleType, secrets: bytes) -> None:
    """A fault of the program that wrote it: sealed rightly, filed under another id."""
    repository = reader.Repository([FIXTURE], reader.keys_of(secrets))
    chunks = [wanted for wanted, places in repository.places.items() if places[0].kind == 1]
    repository.places[chunks[0]] = repository.places[chunks[1]]
    repository.scanned = True
    with pytest.raises(reader.Damage, match="its content is not what its id says"):
        repository.read(chunks[0], b"chunk id")


def test_a_lost_map_is_named_to_the_end_of_the_disk_and_not_beyond(
    attempt: Attempt, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(kept / "meta")
    assert attempt(kept, best_effort=True) == 1
    assert f"lost: disk vda, {SIZE} bytes at 0: " in capsys.readouterr().err
