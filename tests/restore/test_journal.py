"""What a restore that was killed between its renames left is known by its journal, and nothing else is touched.

That it is so at every step is tried by kills: `python -m tests.faults restore`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from vmcellar.restore import journal
from vmcellar.restore.journal import JOURNAL, clear_unfinished, partial


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A folder in which two of three files got their names."""
    files = [tmp_path / name for name in ("vda.raw", "vdb.raw", "domain.xml")]
    for path in files:
        partial(path).write_bytes(path.name.encode())
    (tmp_path / JOURNAL).write_bytes(journal.text({path.name: partial(path) for path in files}))
    for path in files[:2]:
        partial(path).rename(path)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_what_is_its_own_goes(killed: Path) -> None:
    (killed / "mine").touch()
    assert [path.name for path in clear_unfinished(killed)] == ["vda.raw", "vdb.raw"]
    assert names(killed) == ["mine"]
    assert not (killed / JOURNAL).exists()


def test_a_file_that_somebody_wrote_to_keeps_all(killed: Path) -> None:
    with (killed / "vda.raw").open("ab") as file:
        file.write(b"the VM was started from it")
    assert clear_unfinished(killed) == []
    assert names(killed) == ["vda.raw", "vdb.raw"]


def test_another_file_of_the_name_keeps_all(killed: Path) -> None:
    (killed / "vda.raw").unlink()
    (killed / "vda.raw").symlink_to(killed / "vdb.raw")
    assert clear_unfinished(killed) == []
    assert names(killed) == ["vda.raw", "vdb.raw"]


def test_a_whole_restore_stays(killed: Path) -> None:
    partial(killed / "domain.xml").rename(killed / "domain.xml")
    (killed / "vda.raw").write_bytes(b"changed since")
    assert clear_unfinished(killed) == []
    assert names(killed) == ["domain.xml", "vda.raw", "vdb.raw"]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"../vda.raw": [1, 2, 3]}', '{"vda.raw": 3}'])
def test_a_journal_that_is_none_clears_nothing(killed: Path, text: str) -> None:
    (killed / JOURNAL).write_text(text)
    assert clear_unfinished(killed) == []
    assert names(killed) == ["vda.raw", "vdb.raw"]
