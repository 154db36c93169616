"""What is left out, and what is kept where nobody can tell: never more than was named, never a failed backup."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcellar.backup import leaving, planning
from vmcellar.backup.leaving import NOTHING, Leaving, look
from vmcellar.errors import CancelledError, PermanentError
from vmcellar.guestfiles.places import Answer
from vmcellar.progress import CancelToken
from vmcellar.repository.layout import GRID
from vmcellar.repository.left_out import LeftOut
from vmcellar.sources.base import Extent, SourceDisk

LOGS = ("/var/log",)
XML = b"<domain><devices><disk><target dev='vda'/><blockio logical_block_size='4096'/></disk></devices></domain>"
CELLS = st.sets(st.integers(0, 30))


def capture(uri: str = "nbd+unix:///{}?socket=/run/s.sock") -> Any:
    disks = (SourceDisk("vda", 100 * GRID, "inode=5", "qcow2", tracked=True),)
    return SimpleNamespace(result=SimpleNamespace(disks=disks), artifacts={"domain.xml": XML}, uri=uri.format)


def answering(answer: Answer) -> Callable[..., Answer]:
    return lambda *_: answer


def test_whole_clusters_of_what_was_told_are_left_out_and_the_report_says_what_that_means(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = Answer({"vda": ((GRID - 4096, 3 * GRID), (99 * GRID, 2 * GRID))}, 2, ("/var/log/x: a doubt",))
    monkeypatch.setattr(leaving, "_ask", answering(told))
    found = look(capture(), LOGS, NOTHING, CancelToken())
    assert found.now.ranges("vda") == [(GRID, 2 * GRID), (99 * GRID, GRID)], "none in part, none beyond the end"
    assert found.now.paths == LOGS
    assert "2 files are left out: files there come back with their names and sizes" in found.warnings[0]
    assert found.warnings[1] == "kept, not left out: /var/log/x: a doubt"


def test_a_disk_that_nobody_asked_about_means_that_nothing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "_ask", answering(Answer({"vda": ((0, GRID),), "vdx": ((0, GRID),)}, 1, ())))
    found = look(capture(), LOGS, NOTHING, CancelToken())
    assert (found.now.disks, len(found.warnings)) == ({}, 1)


def test_disks_of_another_host_are_not_given_to_the_appliance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "_ask", lambda *_: pytest.fail("it was asked"))
    found = look(capture("nbds://kvm2:10809/{}"), LOGS, NOTHING, CancelToken())
    assert found.now == LeftOut(LOGS)
    assert "nothing is left out, all is in this point: the VM runs on another host" in found.warnings[0]


def test_without_libguestfs_everything_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise PermanentError("libguestfs is not installed")

    monkeypatch.setattr(leaving, "check_installed", missing)
    assert "libguestfs is not installed" in look(capture(), LOGS, NOTHING, CancelToken()).warnings[0]


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; sys.stderr.write('no kernel'); sys.exit(1)", "libguestfs: no kernel"),
        ("import os; os.abort()", "libguestfs: ended with -6"),
        ("print('{')", "libguestfs: its answer is not understood"),
    ],
)
def test_a_program_that_fails_keeps_everything(monkeypatch: pytest.MonkeyPatch, program: str, words: str) -> None:
    monkeypatch.setattr(leaving, "check_installed", lambda: None)
    monkeypatch.setattr(leaving, "PROGRAM", ("-c", program))
    found = look(capture(), LOGS, NOTHING, CancelToken())
    assert found.now == LeftOut(LOGS)
    assert words in found.warnings[0]


def test_a_program_that_hangs_is_ended_when_the_backup_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "check_installed", lambda: None)
    monkeypatch.setattr(leaving, "PROGRAM", ("-c", "import signal; signal.pause()"))
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(CancelledError):
        look(capture(), LOGS, NOTHING, cancel)


def left(cells: set[int]) -> LeftOut:
    return LeftOut(LOGS, {"vda": tuple((cell, 1) for cell in sorted(cells))})


@given(CELLS, CELLS, CELLS, CELLS)
def test_every_cluster_of_an_incremental_is_what_the_guest_has_or_zero_where_it_is_left_out(
    before: set[int], now: set[int], dirty: set[int], holes: set[int]
) -> None:
    """A model of the map: the guest's content is `new` where dirty, else `old`; the parent has zero in `before`."""
    change = Leaving(left(now), left(before))
    allocated = [Extent(cell * GRID, GRID, zero=cell in holes) for cell in range(31)]
    wanted = dirty | {extent.offset // GRID for extent in change.reread("vda")}
    read = planning.incremental_extents([Extent(cell * GRID, GRID) for cell in sorted(wanted)], allocated)
    recorded = change.incremental("vda", read)
    assert recorded == sorted(recorded, key=lambda extent: extent.offset)
    made = {cell: "zero" if cell in before else "old" for cell in range(31)}
    guest = {cell: "new" if cell in dirty else "old" for cell in range(31)}
    guest |= dict.fromkeys(holes & (dirty | before), "zero")
    for extent in recorded:
        for cell in range(extent.offset // GRID, (extent.offset + extent.length) // GRID):
            made[cell] = "zero" if extent.zero else guest[cell]
    assert made == {cell: "zero" if cell in now else guest[cell] for cell in range(31)}


@given(CELLS, CELLS)
def test_a_full_records_all_data_that_is_not_left_out(now: set[int], data: set[int]) -> None:
    found = Leaving(left(now)).full("vda", [Extent(cell * GRID, GRID) for cell in sorted(data)])
    assert [extent.offset // GRID for extent in found] == sorted(data - now)
