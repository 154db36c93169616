"""Many jobs on one Prefect server for a long time: is a run missed, is one stuck, does anything grow?

    ./run bench soak [--minutes 20] [--vms 200] [--real 4] [--every 5] [--database sqlite|postgresql] [--directory DIR]

200 simulated VMs (image files of 1 MiB) in jobs of ten, and paused real ones, each job every five minutes, staggered
by the minute: `deployments.serve` and one server, as `vmcellar up` runs them. Every five seconds a tenth of 20
simulated disks and a megabyte of each real one changes. It ends with exit code 1 where a run was missed, failed or is
stuck, where anything is left behind, or where memory or open files of the server or of `serve` grew (`GROWTH`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from prefect import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, temporary_settings

from bench.soak_source import PREFIX, install, still
from deployments.up import SETTINGS
from lab.daemons import ensure
from lab.guest import LabGuest
from lab.paths import vm_folder
from lab.postgres import Postgres
from lab.prefect_server import PrefectServer
from lab.shellcommand import LabError
from lab.waiting import wait_for
from tests.proof.cellar import MIB, Cellar, job_runs
from tests.proof.conftest import SMALL_DISKS
from vmcellar.backup import pipeline
from vmcellar.backup.model import BackupRequest
from vmcellar.engine import open_engine

PER_JOB = 10
LOOK_SECONDS = 5.0
TAIL_SECONDS = 180
"""How long after its last minute the soak waits for what is under way."""
GROWTH = 1.10
"""What of the second quarter's the last one's may be. The first quarter is the warm-up."""
SPARE_FILES = 8
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Use:
    """What a process had at each look: MiB of its own memory, open files; CPU seconds since the first."""

    pid: int
    memory: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    children: list[float] = field(default_factory=list)

    def look(self) -> None:
        """Once more."""
        status = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        self.memory.append(next(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon")))
        self.files.append(len(list(Path(f"/proc/{self.pid}/fd").iterdir())))
        times = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[11:15]
        own, system, children, children_system = (int(each) / TICKS for each in times)
        self.cpu.append(own + system)
        self.children.append(children + children_system)

    def now(self) -> str:
        """What the last look saw."""
        return f"{self.memory[-1]:.0f} MiB, {self.files[-1]} files"

    def grew(self) -> bool:
        """Whether the last quarter had more than the second, by more than `GROWTH` says."""
        memory, files = _quarters(self.memory, statistics.median), _quarters(self.files, min)
        return memory[-1] > memory[1] * GROWTH or files[-1] > files[1] * GROWTH + SPARE_FILES

    def spent(self) -> tuple[float, float]:
        """CPU seconds of the process itself, and of its children that have ended, between first and last look."""
        return self.cpu[-1] - self.cpu[0], self.children[-1] - self.children[0]

    def __str__(self) -> str:
        """By quarters the median of memory, and the fewest and the most open files.

        Each run that is under way has its pipes; a leak raises what is left between runs, the fewest.
        """
        memory = _quarters(self.memory, statistics.median)
        fewest, most = _quarters(self.files, min), _quarters(self.files, max)
        files = (f"{low:.0f}-{high:.0f}" for low, high in zip(fewest, most, strict=True))
        return f"memory {' '.join(f'{value:.0f}' for value in memory)} MiB, open files {' '.join(files)}"


def _quarters(values: Sequence[float], figure: Callable[[Sequence[float]], float]) -> list[float]:
    step = max(1, len(values) // 4)
    return [figure(values[start : start + step]) for start in range(0, 4 * step, step)[:4] if values[start:]]


def jobs(vms: int, real: Sequence[str], every: int) -> list[dict[str, Any]]:
    """A job for each ten simulated VMs and one for the real ones, a minute apart from each other."""
    made = []
    for number, start in enumerate(range(0, vms, PER_JOB)):
        names = [f"{PREFIX}{vm:03}" for vm in range(start, min(start + PER_JOB, vms))]
        made.append({"name": f"sim-{number:02}", "domains": names, "schedule": _cron(number, every)})
    if real:
        made.append({"name": "real", "domains": list(real), "schedule": _cron(len(made), every)})
    return made


def _cron(number: int, every: int) -> str:
    return f"{','.join(map(str, range(number % every, 60, every)))} * * * *"


@contextmanager
def world(options: argparse.Namespace) -> Iterator[tuple[Cellar, list[LabGuest], Path]]:
    """A cellar with its jobs, running guests, and the folder of the simulated ones."""
    with ExitStack() as stack:
        folder = stack.enter_context(vm_folder("soak"))
        sims = folder / "sims"
        for number in range(options.vms):
            (sims / f"{PREFIX}{number:03}").mkdir(parents=True)
            (sims / f"{PREFIX}{number:03}" / f"{PREFIX}{number:03}.vda").write_bytes(
                random.Random(number).randbytes(MIB)
            )
        guests = [stack.enter_context(LabGuest(folder, SMALL_DISKS)) for _ in range(options.real)]
        for guest in guests:
            guest.start(paused=True)
        planned = jobs(options.vms, [guest.name for guest in guests], options.every)
        settings = {"backups": planned, "limits": {"vms": 4}}
        yield Cellar(folder / "cellar", settings), guests, sims


def change(guests: Sequence[LabGuest], sims: Path, dice: random.Random) -> None:
    """Something on every real disk, and on a few of the simulated ones."""
    for guest in guests:
        guest.poke("vda", dice.randrange(14) * MIB, MIB, seed=dice.randrange(1 << 20))
    for folder in dice.sample(sorted(sims.iterdir()), k=min(20, len(list(sims.iterdir())))):
        with still(folder.name), (folder / f"{folder.name}.vda").open("r+b") as image:
            image.seek(dice.randrange(9) * MIB // 10)
            image.write(dice.randbytes(MIB // 10))


@contextmanager
def serving(cellar: Cellar, sims: Path, environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`deployments.serve` with the simulated VMs."""
    root = Path(__file__).parents[1]
    more = {
        "PYTHONPATH": f"{root / 'bench' / 'soak_hook'}:{root}",
        "SOAK_FOLDER": str(sims),
        "VMCELLAR_CONFIG": str(cellar.file),
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "deployments.serve"],
            env={**os.environ, **environment, **more},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=log.parent,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(120)


async def runs(flow: str, begun: datetime, end: datetime) -> list[FlowRun]:
    """All runs of a deployment's flow that were due within that time."""
    found: list[FlowRun] = []
    due = FlowRunFilterExpectedStartTime.model_validate({"after_": begun - timedelta(seconds=1), "before_": end})
    async with get_client() as client:
        while page := await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(expected_start_time=due), limit=200, offset=len(found)
        ):
            found += page
        names = {each.id: (await client.read_flow(each.id)).name for each in await client.read_flows()}
    return [run for run in found if names[run.flow_id] == flow]


def engine_alone(cellar: Cellar, sims: Path) -> tuple[float, float]:
    """Seconds, and CPU seconds, that the engine alone takes for a simulated VM that changed: medians of ten."""
    install()
    engine, dice, taken, cpu = open_engine(cellar.file), random.Random(7), [], []
    for number in range(10):
        vm = f"{PREFIX}{number:03}"
        with (sims / vm / f"{vm}.vda").open("r+b") as image:
            image.write(dice.randbytes(MIB // 10))
        begun, worked = time.monotonic(), time.process_time()
        pipeline.run(engine, BackupRequest(vm))
        taken.append(time.monotonic() - begun)
        cpu.append(time.process_time() - worked)
    return statistics.median(taken), statistics.median(cpu)


def main() -> int:
    """Set up, look on, judge."""
    options = _options()
    ensure()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-", dir=options.directory)))
        folder.chmod(0o755)
        settings = {name: value or "" for name, value in dotenv_values(SETTINGS).items()}
        if options.database == "postgresql":
            database = stack.enter_context(Postgres(folder))
            settings["PREFECT_API_DATABASE_CONNECTION_URL"] = database.create("prefect")
        cellar, guests, sims = stack.enter_context(world(options))
        os.environ["SOAK_FOLDER"] = str(sims)
        server = stack.enter_context(PrefectServer(folder / "prefect", settings=settings))
        ours: dict[Any, Any] = {
            PREFECT_API_URL: server.environment["PREFECT_API_URL"],
            PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False,
        }
        stack.enter_context(temporary_settings(ours))
        with serving(cellar, sims, server.environment, folder / "serve.log") as served:
            seen = _soak(options, cellar, guests, sims, {"server": Use(server.pid), "serve": Use(served.pid)})
        left = [str(path) for path in [*cellar.leftovers(), *sims.glob("*/held-*")]]
        left += [guest.name for guest in guests if job_runs(guest)]
        print(f"left behind when all was stopped: {' '.join(left) or 'nothing'}")
        _overhead(seen, *engine_alone(cellar, sims))
        return 1 if left or seen.bad else 0


@dataclass
class Seen:
    """What the soak saw: VM runs, what the processes used, and whether anything was wrong."""

    vms: Sequence[FlowRun]
    uses: dict[str, Use]
    bad: bool


def _soak(
    options: argparse.Namespace, cellar: Cellar, guests: Sequence[LabGuest], sims: Path, uses: dict[str, Use]
) -> Seen:
    planned = len(cellar.config.backups)
    wait_for(lambda: asyncio.run(_scheduled()) >= planned, "the schedules", seconds=180)
    begun = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
    end = begun + timedelta(minutes=options.minutes)
    dice = random.Random(1)
    print(f"{options.vms} simulated and {len(guests)} real VMs, {planned} jobs, every {options.every} minutes, "
          f"{options.minutes} minutes from {begun:%H:%M} UTC on {options.database}", flush=True)  # fmt: skip
    told = begun
    while (moment := datetime.now(UTC)) < end:
        change(guests, sims, dice)
        for use in uses.values():
            use.look()
        if moment - told >= timedelta(minutes=1):
            told = moment
            print(f"{moment:%H:%M:%S} {asyncio.run(_standing(begun, moment))}; "
                  f"{'; '.join(f'{name}: {use.now()}' for name, use in uses.items())}", flush=True)  # fmt: skip
        time.sleep(LOOK_SECONDS)
    last = end - timedelta(seconds=1)
    with suppress(LabError):  # what is not over then is told below
        wait_for(lambda: asyncio.run(_all_over(begun, last)), "the last runs", seconds=TAIL_SECONDS)
    missed = _judge(options, asyncio.run(runs("backup-job", begun, last)), planned)
    vms = [run for run in asyncio.run(runs("backup-vm", begun, last)) if run.parent_task_run_id]
    bad = [run for run in vms if run.state_name != "Completed"]
    print(f"VM runs: {len(vms)}, {len(bad)} not completed")
    for name, use in uses.items():
        print(f"{name}, by quarters: {use}{'  GREW' if use.grew() else ''}")
    return Seen(vms, uses, bool(missed or bad or any(use.grew() for use in uses.values())))


async def _standing(begun: datetime, moment: datetime) -> str:
    """How the jobs that came due stand; a count that the server is slow to give is worth knowing, too."""
    asked = time.monotonic()
    due = FlowRunFilterExpectedStartTime.model_validate({"after_": begun - timedelta(seconds=1), "before_": moment})
    async with get_client() as client:
        found = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                expected_start_time=due, deployment_id=FlowRunFilterDeploymentId.model_validate({"is_null_": False})
            ),
            limit=200,
        )
    states = Counter(str(run.state_name) for run in found if run.parameters.get("request", {}).get("job"))
    text = ", ".join(f"{count} {name}" for name, count in sorted(states.items())) or "none due"
    return f"jobs: {text} (asked in {time.monotonic() - asked:.1f} s)"


async def _scheduled() -> int:
    only = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])))
    found: list[FlowRun] = []
    async with get_client() as client:
        while page := await client.read_flow_runs(flow_run_filter=only, limit=200, offset=len(found)):
            found += page
    return len({run.deployment_id for run in found if run.parameters.get("request", {}).get("job")})


async def _all_over(begun: datetime, last: datetime) -> bool:
    return all(run.state is not None and run.state.is_final() for run in await runs("backup-job", begun, last))


def _judge(options: argparse.Namespace, found: Sequence[FlowRun], planned: int) -> bool:
    wanted = planned * (options.minutes // options.every)
    good = [run for run in found if run.state is not None and run.state.name == "Completed"]
    print(f"job runs: {wanted} due, {len(found)} seen, {len(good)} completed")
    for run in found:
        if run not in good:
            print(f"  {run.name}: {run.state_name}: {run.state.message if run.state else ''}")
    late = [
        (run.start_time - run.expected_start_time).total_seconds()
        for run in good
        if run.start_time and run.expected_start_time
    ]
    if late:
        print(f"begun after they were due: median {statistics.median(late):.1f} s, most {max(late):.1f} s")
    took = [run.total_run_time.total_seconds() for run in good]
    if took:
        print(f"a job of {PER_JOB} VMs took: median {statistics.median(took):.1f} s, most {max(took):.1f} s")
    return len(good) < wanted or len(good) < len(found)


def _overhead(seen: Seen, alone: float, alone_cpu: float) -> None:
    took = [run.total_run_time.total_seconds() for run in seen.vms]
    if not took:
        return
    server, (own, children) = seen.uses["server"].spent()[0], seen.uses["serve"].spent()
    per_run = (server + own + children) / len(took)
    print(f"a VM's run, four at once: median {statistics.median(took):.2f} s, most {max(took):.1f} s; "
          f"the engine alone, one at once: {alone:.2f} s")  # fmt: skip
    print(f"CPU seconds per VM run: server {server / len(took):.2f}, serve {own / len(took):.2f}, the job's process "
          f"{children / len(took):.2f}; the engine alone {alone_cpu:.2f}: "
          f"Prefect adds {per_run - alone_cpu:.2f}")  # fmt: skip


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=20, help="a multiple of --every")
    parser.add_argument("--vms", type=int, default=200)
    parser.add_argument("--real", type=int, default=4)
    parser.add_argument("--every", type=int, default=5, help="minutes from one run of a job to its next; divides 60")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--directory", type=Path, default=None, help="for the server's database and logs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
