"""What hosts that died left in the staging folder goes; what anybody may still work on stays."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.upkeep.world import DAY, HOUR, World
from vmcellar.errors import PermanentError
from vmcellar.repository import leases
from vmcellar.upkeep import gc

HEX = "0123456789abcdef"
INSTANCE = f"aabbccdd-{(b'r' * 16).hex()[:8]}"
DEAD = [f"commit-{HEX * 2}", f"rewrite-{HEX * 2}", f"repair-{HEX}", f"{INSTANCE}/run-1"]
FOREIGN = ["lost+found", "commit-of-mine", "aabbccdd-00000000/run-1", "old"]


@pytest.fixture
def now(world: World) -> World:
    """A world with a point, by the clock of the files."""
    world.now = time.time()
    world.back_up(world.host(), {0: 1})
    return world


def leave(world: World, name: str, age: float = 2 * DAY) -> Path:
    """A folder in which a writer built a pack and died."""
    folder = world.tier.staging_dir() / name
    folder.mkdir(parents=True)
    (folder / "a.pack").write_bytes(b"sealed" * 1000)
    for path in (folder / "a.pack", folder):
        os.utime(path, (world.now - age, world.now - age))
    return folder


def test_what_the_dead_left_is_named_and_removed(now: World) -> None:
    folders = [leave(now, name) for name in DEAD]
    foreign = [leave(now, name) for name in FOREIGN]
    told = gc.collect(now.host(), dry_run=True)
    assert told.staging == tuple(sorted(DEAD))
    assert told.staging_bytes >= len(DEAD) * 6000
    assert all(folder.exists() for folder in folders)
    assert gc.collect(now.host()).staging == told.staging
    assert [folder for folder in folders if folder.exists()] == []
    assert all(folder.exists() for folder in foreign)
    assert gc.collect(now.host()).staging == ()
    now.check()


def test_a_day_is_kept_whatever_the_grace_time(now: World) -> None:
    folder = leave(now, DEAD[0], age=DAY - HOUR)
    assert gc.collect(now.host(), grace=0).staging == ()
    leave(now, DEAD[1])
    assert gc.collect(now.host(), grace=7 * DAY).staging == ()
    assert folder.exists()


def test_one_new_file_keeps_all_of_it(now: World) -> None:
    folder = leave(now, DEAD[3])
    (folder / "b.pack").write_bytes(b"")
    os.utime(folder, (0, 0))
    assert gc.collect(now.host()).staging == ()


def test_a_writer_that_lives_keeps_what_it_staged_before(now: World) -> None:
    """A backup of three days, on another host, whose first packs are two days old."""
    folder = leave(now, DEAD[3])
    real = now.now
    now.now = real - 3 * DAY
    keyring = now.host().keyring
    lease = leases.HeldLease(now.tier, keyring, "backup web", lambda: now.now)
    now.now = real
    lease.renew()
    assert gc.collect(now.host()).staging == ()
    assert folder.exists()
    lease.release()
    later = leases.HeldLease(now.tier, keyring, "backup web", lambda: now.now)  # began long after
    assert gc.collect(now.host()).staging == (DEAD[3],)
    later.release()


def test_a_link_is_never_followed(now: World, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_bytes(b"")
    (now.tier.staging_dir() / DEAD[0]).symlink_to(mine)
    inside = leave(now, DEAD[1])
    (inside / "link").symlink_to(mine)
    os.utime(inside / "link", (0, 0), follow_symlinks=False)
    os.utime(inside, (0, 0))
    assert gc.collect(now.host()).staging == (DEAD[1],)
    assert (mine / "file").exists()


def test_what_cannot_be_removed_is_told(now: World, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(now, DEAD[0])

    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("vmcellar.upkeep.staging.shutil.rmtree", refuse)
    report = gc.collect(now.host())
    assert f"staging/{DEAD[0]} of a writer that died could not be removed: Permission denied" in report.notes


def test_a_tier_that_takes_no_staging_is_still_looked_at(now: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> Path:
        raise PermanentError("read-only")

    host = now.host()
    monkeypatch.setattr(type(now.tier), "staging_dir", refuse)
    report = gc.collect(host, dry_run=True)
    assert "was not looked for: read-only" in report.notes[-1]
    assert replace(report, notes=()).staging == ()
