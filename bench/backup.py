"""Full, incremental and restore: virtnbdbackup and us in turn on the same paused guest and the same disk.

    ./run bench backup [--disk 8g] [--rounds 5] [--landing DIR]

Prints medians (wall, CPU of the tool, CPU of the guest's QEMU) and ratios of wall time, peer over us. Three figures
for us: the engine alone, the flow run with a server up, and the whole command.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import httpx
import libvirt

from bench.measure import Cost, medians, timed
from lab import daemons
from lab.bigdisk import DISKS, big_guest, scatter
from lab.guest import LabGuest
from lab.paths import vm_folder
from lab.prefect_server import PrefectServer

MIB = 1 << 20
CHANGED = 64 * MIB
PEER = "virtnbdbackup"
PEER_RESTORE = "virtnbdrestore"


class Bench:
    """One guest, one folder; every round leaves guest and folder as it found them."""

    def __init__(self, guest: LabGuest, folder: Path, server: PrefectServer, landing: str) -> None:
        self.guest = guest
        self.folder = folder
        self.server = server
        self.costs: dict[str, list[Cost]] = defaultdict(list)
        self.facts: dict[str, list[float]] = defaultdict(list)
        self.seeds = itertools.count(100)
        self.config = folder / "vmcellar.yaml"
        (folder / "passphrase").write_text("bench\n")
        self.config.write_text(
            json.dumps(
                {
                    "tiers": {"hot": str(folder / "repository")},
                    "key": {"file": str(folder / "passphrase")},
                    "state": str(folder / "state"),
                    "scratch": str(folder / "scratch"),
                    **({"landing": {"dir": landing}} if landing else {}),
                }
            )
        )

    def round(self, number: int) -> None:
        """Each tool once, in an order that changes from round to round."""
        works = [self.peer_round, self.peer_compressed, self.our_engine, self.our_command]
        for work in works[number % len(works) :] + works[: number % len(works)]:
            work()
            self._forget()

    def peer_round(self) -> None:
        """The peer without compression: full, incremental, restore."""
        self._peer("peer", [])

    def peer_compressed(self) -> None:
        """The peer with --compress."""
        self._peer("peer --compress", ["--compress"])

    def our_engine(self) -> None:
        """The engine alone: full, incremental, restore."""
        full = self._engine("backup", self.guest.name)
        self._add("engine full", full)
        self._facts("full", full)
        self._change()
        incremental = self._engine("backup", self.guest.name)
        self._add("engine incremental", incremental)
        self._facts("incremental", incremental)
        self._add("engine unchanged", self._engine("backup", self.guest.name))
        point = json.loads(incremental.output)["id"]
        out = self.folder / "restored"
        self._add("engine restore", self._engine("restore", point, str(out)))

    def our_command(self) -> None:
        """`vmcellar backup` with a Prefect server up: the flow run as the server saw it, and the whole command."""
        self._command("full")
        self._change()
        self._command("incremental")
        self._command("unchanged")

    def _change(self) -> None:
        """Scattered writes that no earlier point holds: nothing of them is known to any repository."""
        scatter(self.guest, "vda", CHANGED, seed=next(self.seeds))

    def _peer(self, name: str, options: list[str]) -> None:
        target = self.folder / "peer"
        common: list[str | Path] = [PEER, "-d", self.guest.name, "-o", target, *options]
        self._add(f"{name} full", self._timed([*common, "-l", "full"]))
        self._change()
        self._add(f"{name} incremental", self._timed([*common, "-l", "inc"]))
        out = self.folder / "peer-restored"
        restore: list[str | Path] = [PEER_RESTORE, "-a", "restore", "-i", target, "-o", out]
        self._add(f"{name} restore", self._timed(restore))
        _wait_for_end("qemu-nbd")

    def _engine(self, *arguments: str) -> Cost:
        cost = self._timed([sys.executable, "-m", "bench.engine_once", str(self.config), *arguments])
        own = json.loads(cost.output)["took"]
        return Cost(own, cost.cpu, cost.qemu, cost.output)

    def _command(self, what: str) -> None:
        tool = Path(sys.executable).parent / "vmcellar"
        command: list[str | Path] = [tool, "--config", self.config, "backup", self.guest.name, "--json"]
        cost = timed(command, self.guest.qemu_pid(), self.server.environment)
        self._add(f"command {what}", cost)
        self._add(f"flow {what}", Cost(self._last_flow_run(), cost.cpu, cost.qemu))

    def _last_flow_run(self) -> float:
        """Seconds that the last backup's flow run was running, as its states tell."""
        wanted = {"sort": "END_TIME_DESC", "limit": 1, "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
        found = httpx.post(f"{self.server.environment['PREFECT_API_URL']}/flow_runs/filter", json=wanted)
        found.raise_for_status()
        return float(found.json()[0]["total_run_time"])

    def _timed(self, command: Sequence[str | Path]) -> Cost:
        return timed(command, self.guest.qemu_pid())

    def _add(self, name: str, cost: Cost) -> None:
        self.costs[name].append(cost)
        print(f"  {name:28} {cost.wall:6.2f} s  cpu {cost.cpu:6.2f}  qemu {cost.qemu:5.2f}", flush=True)

    def _facts(self, name: str, cost: Cost) -> None:
        point = json.loads(cost.output)
        for fact in ("held_seconds", "bytes_read", "bytes_changed", "bytes_stored", "memory"):
            self.facts[f"{name} {fact}"].append(float(point[fact]))
        self.facts[f"{name} new"].append(float(sum(disk["bytes_new"] for disk in point["disks"])))

    def _forget(self) -> None:
        """Drop checkpoints and outputs: the next tool starts as this one did."""
        for checkpoint in self.guest.domain.listAllCheckpoints(libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL):
            checkpoint.delete()
        for name in ("peer", "peer-restored", "repository", "state", "restored"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self.make_repository()

    def make_repository(self) -> None:
        """A new, empty repository."""
        from vmcellar.config.load import load_config  # noqa: PLC0415  (the folder must exist first)
        from vmcellar.repository.repository import Repository  # noqa: PLC0415

        Repository.init(load_config(self.config)).close()


def _wait_for_end(program: str) -> None:
    """The peer's restore leaves its qemu-nbd behind for a moment."""
    deadline = time.monotonic() + 30
    while subprocess.run(["pgrep", "-x", program], capture_output=True, check=False).returncode == 0:
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)


def report(bench: Bench) -> None:
    """Medians and ratios."""
    found = {name: medians(costs) for name, costs in bench.costs.items()}
    print(f"\n{'':30}{'wall':>8}{'least':>8}{'most':>8}{'cpu':>8}{'qemu':>8}")
    for name, m in sorted(found.items()):
        print(f"{name:30}{m.wall:8.2f}{m.least:8.2f}{m.most:8.2f}{m.cpu:8.2f}{m.qemu:8.2f}")
    print("\nratios, peer over us (above 1: we are faster)")
    for what, least in (("full", "1.5, and 2.5 for --compress"), ("incremental", "1.5"), ("restore", "1.5")):
        for peer in ("peer", "peer --compress"):
            ratio = found[f"{peer} {what}"].wall / found[f"engine {what}"].wall
            print(f"  {peer + ' ' + what:30}{ratio:6.2f}   (asked: {least})")
    for what in ("full", "incremental", "unchanged"):
        for more in ("flow", "command"):
            seconds = found[f"{more} {what}"].wall - found[f"engine {what}"].wall
            print(f"  {more + ' ' + what:30}{seconds:+6.2f} s over the engine's own part")
    for fact, values in bench.facts.items():
        middle = sorted(values)[len(values) // 2]
        print(f"  {fact:30}{middle if middle < 1000 else middle / MIB:10.2f}{'' if middle < 1000 else ' MiB'}")


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disk", choices=sorted(DISKS), default="8g")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--landing", default="", help="landing folder; default: the configuration's own")
    options = parser.parse_args()
    daemons.ensure()
    disk = DISKS[options.disk]
    with vm_folder("bench") as folder, PrefectServer(folder / "prefect") as server, big_guest(disk) as guest:
        bench = Bench(guest, folder, server, options.landing)
        bench.make_repository()
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", flush=True)
            bench.round(number)
        report(bench)
    return 0


if __name__ == "__main__":
    sys.exit(main())
