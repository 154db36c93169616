"""A real process, as a host with its own boot, state directory and clock, beside gc."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.upkeep.test_beside import garbage_of_content
from tests.upkeep.world import DAY, World
from vmcellar.repository import leases
from vmcellar.upkeep import gc

ROOT = Path(__file__).resolve().parents[2]


def start(world: World, name: str, skew: float, count: int, *mode: str) -> subprocess.Popen[bytes]:
    (world.folder / "clock").write_text(str(world.now))
    command = [sys.executable, "-m", "tests.upkeep.writer", str(world.folder), name, str(skew), str(count), *mode]
    return subprocess.Popen(command, cwd=ROOT)


def test_a_process_stopped_beyond_its_lease_commits_nothing_and_loses_nobodys_data(world: World) -> None:
    garbage_of_content(world, world.host(), 3)
    before = {point.id for point in world.check()}
    writer = start(world, "slow", 0, 1, "pause")
    _, status = os.waitpid(writer.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), "it ended before it paused"
    collector = world.host("collector")
    assert [lease.newest.what for lease in leases.found(world.tier, collector.keyring)] == ["backup slow"]
    for _ in range(3):
        gc.collect(collector)
        world.now += 2 * DAY
    assert leases.found(world.tier, collector.keyring) == []  # a stale lease goes by itself
    (world.folder / "clock").write_text(str(world.now))
    writer.send_signal(signal.SIGCONT)
    assert writer.wait(60) == 3
    collector.close()
    assert {point.id for point in world.check()} == before


def test_a_gc_stopped_beyond_its_lease_at_any_step_deletes_nothing_that_is_needed_since(world: World) -> None:
    """While it lies there another gc takes its lease away and ends the work, and backups find the same contents."""
    step, ended = 0, []
    while 4 not in ended:
        step += 1
        content = 10 + step
        host = world.host("b")
        garbage_of_content(world, host, content)
        gc.collect(host)  # marks what the next one deletes
        world.now += 2 * DAY
        (world.folder / "clock").write_text(str(world.now))
        command = [sys.executable, "-m", "tests.upkeep.collector", str(world.folder), str(step)]
        collector = subprocess.Popen(command, cwd=ROOT)
        _, status = os.waitpid(collector.pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            world.now += DAY
            world.back_up(host, {0: content, 1: 5}, vm=f"web-{step}")
            gc.collect(world.host("c"))
            world.back_up(host, {2: content}, vm=f"db-{step}")
            (world.folder / "clock").write_text(str(world.now))
            collector.send_signal(signal.SIGCONT)
            ended.append(collector.wait(60))
        else:
            collector.wait()  # it is gone already; only its object does not know
            ended.append(os.waitstatus_to_exitcode(status))
        host.close()
        points = {point.id for point in world.check()}
        for _ in range(2):
            world.now += 2 * DAY
            gc.collect(world.host("late"))
        assert {point.id for point in world.check()} == points == set(world.model)
    assert set(ended) == {0, 3, 4}
    assert step > 8, "it was stopped at too few steps"
