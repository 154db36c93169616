"""Memory that is really not to be had for Argon2: one error that says what to do, no traceback, no word of a passphrase
that may be right.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.crypto.store import CHEAP, WORD, MemoryStore
from vmcellar.crypto import passphrase, slots
from vmcellar.crypto.passphrase import Argon2Cost, ShortOfMemoryError
from vmcellar.crypto.secrets import Secrets

LIMITED = """
import resource, sys
from pathlib import Path
from vmcellar.cli import main
from vmcellar.config.load import load_config
from vmcellar.repository.repository import Repository
repository = Repository.open(load_config(Path("vmcellar.yaml")))  # now all is imported that takes memory
repository.readable_points()
repository.close()
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (40 << 20),) * 2)
sys.argv = ["vmcellar", *sys.argv[1:]]
main.main()
"""
"""The command line with room for 40 MiB more than it has."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pass").write_bytes(WORD)
    (tmp_path / "vmcellar.yaml").write_text("tiers: {hot: repo}\nkey: {file: pass}\nstate: state\n")
    _run(tmp_path, "from vmcellar.cli.main import main; main()", "init", "-c", "vmcellar.yaml")
    return tmp_path


def _run(folder: Path, program: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "words", [("list", "-c", "vmcellar.yaml"), ("key", "generate", "new", "--passphrase-file", "pass")]
)
def test_a_command_says_what_is_short_and_what_to_do(folder: Path, words: tuple[str, ...]) -> None:
    done = _run(folder, LIMITED, *words)
    assert done.returncode == 1, done.stdout
    assert "takes 64 MiB of memory, which this process cannot have" in done.stderr
    assert "`ulimit -v`" in done.stderr
    assert "Traceback" not in done.stderr
    assert "opens with this passphrase" not in done.stderr


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Argon2 does without memory, for all that costs more than the cheapest."""
    real = passphrase._stretch

    def stretch(word: bytes, salt: bytes, cost: Argon2Cost) -> bytes:
        if cost.memory_kib > CHEAP.memory_kib:
            raise MemoryError
        return real(word, salt, cost)

    monkeypatch.setattr(passphrase, "_stretch", stretch)


def _costly_slots(store: MemoryStore, count: int) -> Secrets:
    secrets = Secrets.random()
    for _ in range(count):
        slots.add_passphrase(store, secrets, WORD, Argon2Cost(memory_kib=64, passes=1, lanes=1))
    return secrets


def test_a_slot_that_takes_less_opens_all_the_same(request: pytest.FixtureRequest) -> None:
    store = MemoryStore()
    secrets = _costly_slots(store, 3)
    slots.add_passphrase(store, secrets, WORD, CHEAP)
    request.getfixturevalue("no_room")
    assert slots.unlock_secrets(store, WORD) == secrets


def test_no_passphrase_is_called_wrong_that_was_not_tried(request: pytest.FixtureRequest) -> None:
    store = MemoryStore()
    slots.add_passphrase(store, _costly_slots(store, 1), b"another", CHEAP)
    request.getfixturevalue("no_room")
    with pytest.raises(ShortOfMemoryError, match="keys/"):
        slots.unlock_secrets(store, WORD)
