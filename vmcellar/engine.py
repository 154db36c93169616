"""The engine: one configuration, its repository, its source of VMs, its landing zone and its threads, in one
process.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from vmcellar.backup.landing import LandingZone
from vmcellar.backup.model import PackHandle
from vmcellar.backup.place import PLACED_AT_ONCE
from vmcellar.backup.rundir import RunDirectory
from vmcellar.backup.runs import Run, load_record
from vmcellar.config.load import find_config, load_config
from vmcellar.config.model import Config
from vmcellar.crypto.base import EpochLockedError
from vmcellar.errors import PermanentError, TransientError, VmcellarError
from vmcellar.folders import fitting
from vmcellar.memory import BufferPool, keep_freed_memory
from vmcellar.policy.bandwidth import Throttle, job_rate
from vmcellar.policy.localzone import local_zone
from vmcellar.repository.layout import CHUNK_MAX, HEADER_BYTES, REPOSITORY_DIGITS
from vmcellar.repository.pack_format import parse_header
from vmcellar.repository.packs import PackWriter
from vmcellar.repository.repository import Repository
from vmcellar.sources.base import Source

if TYPE_CHECKING:
    from vmcellar.catalog.catalog import Catalog

WAITING_WORKERS = 2
"""Workers beyond one per core, as some always wait for the device: with them the cores stay busy."""

WORKERS_MAX = 16
"""The most workers without `limits.workers`: at some 15 MiB each, a backup stays under 512 MiB on any host."""

CPU_NICENESS = 10
"""Compression yields to the guests and to the reading, so the VM is let go sooner."""


class Engine:
    """Everything a stage needs. Any number of threads may use it; one process at a time works on a VM
    (`vm_lock`).
    """

    def __init__(self, config: Config, repository: Repository, source: Source) -> None:
        keep_freed_memory()
        self.config = config
        self.repository = repository
        self.source = source
        self.state = config.state
        self.instance = f"{instance_of(self.state)}-{repository.id.hex()[:REPOSITORY_DIGITS]}"
        self.runs = self.state / "runs" / self.instance
        self.landing = LandingZone(config.landing.dir / self.instance, config.landing.budget_bytes())
        self.read_buffers = BufferPool(CHUNK_MAX)
        self.direct_slots = threading.BoundedSemaphore(config.landing.direct // CHUNK_MAX)
        self.place_slots = threading.BoundedSemaphore(PLACED_AT_ONCE)
        self._runs: dict[str, Run] = {}
        self._lock = threading.Lock()

    @cached_property
    def cpu(self) -> ThreadPoolExecutor:
        """The one pool for compression, encryption and checks, at a lower priority."""
        workers = self.config.limits.workers or min(WORKERS_MAX, (os.cpu_count() or 1) + WAITING_WORKERS)
        return ThreadPoolExecutor(workers, thread_name_prefix="cpu", initializer=_yield_to_others)

    @cached_property
    def _zero_ids(self) -> dict[int, bytes]:
        return {}

    def zero_id(self, length: int) -> bytes:
        """The chunk id of `length` zero bytes: a chunk with this id is a hole."""
        known = self._zero_ids.get(length)
        if known is None:
            known = self._zero_ids[length] = self.repository.keyring.chunk_id(memoryview(bytes(length)))
        return known

    @cached_property
    def catalog(self) -> Catalog:
        """The history of this repository's backups; its errors when it cannot be opened."""
        from vmcellar.catalog.catalog import Catalog  # noqa: PLC0415  (SQLAlchemy; only where a run ends)

        return Catalog.of(self.config, self.repository.id)

    @contextmanager
    def vm_lock(self, vm: str) -> Iterator[None]:
        """Hold the VM for this process; TransientError while another one works on it. The kernel frees it after a
        kill.
        """
        folder = self.state / "locks"
        folder.mkdir(mode=0o700, exist_ok=True)
        name = "".join(c if c.isalnum() or c in "-_." else f"%{ord(c):x}" for c in vm)
        lock = os.open(folder / f"{fitting(name)}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.pread(lock, 64, 0).decode(errors="replace").partition("\n")[0] or "unknown"
                raise TransientError(
                    f"{vm}: another vmcellar process (pid {holder}) is working on it",
                    hint="wait for it to end, then try again",
                ) from error
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n{vm}\n".encode(), 0)
            yield
        finally:
            os.close(lock)

    def throttle(self, job: str) -> Throttle | None:
        """What slows the reading of a job's VMs down, on all processes of this host together; None: nothing."""
        slowed = (each for each in self.config.backups if each.bandwidth or isinstance(each.after_window, int))
        found = next((each for each in slowed if each.name == job), None)
        if found is None:
            return None
        return Throttle(
            self.state / "bandwidth" / job, lambda: job_rate(found, datetime.now(UTC).astimezone(local_zone()))
        )

    def run(self, run_id: str) -> Run:
        """The run, from this process's memory or its directory; PermanentError when there is none."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is None:
                run = self._runs[run_id] = self._open_run(run_id)
            return run

    def remember(self, run: Run) -> None:
        """Keep a run that was just begun or found."""
        with self._lock:
            self._runs[run.directory.run_id] = run

    def known_run(self, run_id: str) -> Run | None:
        """The run if this process holds it."""
        with self._lock:
            return self._runs.get(run_id)

    def forget(self, run_id: str) -> None:
        """Drop a run from this process's memory."""
        with self._lock:
            self._runs.pop(run_id, None)

    def _open_run(self, run_id: str) -> Run:
        directory = self.run_directory(run_id)
        record = load_record(directory)
        if record is None:
            raise PermanentError(f"there is no run {run_id} under {self.state}", hint="run the backup again")
        return Run(directory, record, self.source.reattach(record.capture))

    def run_directory(self, run_id: str) -> RunDirectory:
        """Where a run of this repository keeps its hand-overs, whether it is there or not."""
        return RunDirectory(self.runs / run_id)

    def run_directories(self) -> list[RunDirectory]:
        """All runs of this repository that left a folder, oldest first."""
        return [RunDirectory(path) for path in sorted(self.runs.glob("*")) if path.is_dir()]

    def staging(self, run_id: str) -> Path:
        """Where a run's packs are built; of this host and state directory alone."""
        return self.repository.tier.staging_dir() / self.instance / run_id

    def pack_writer(self, run_id: str, compression: str) -> PackWriter:
        """A writer of data packs in the run's staging folder."""
        folder = self.staging(run_id)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.repository.pack_writer(folder, compression)

    def staged_runs(self) -> list[str]:
        """The runs of this instance that have staged packs."""
        folder = self.repository.tier.staging_dir() / self.instance
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []

    def drop_staged(self, run_id: str) -> None:
        """Remove what a run staged and did not place."""
        shutil.rmtree(self.staging(run_id), ignore_errors=True)

    def placed(self, pack: PackHandle) -> bool:
        """Whether the tier has the pack, whole as far as its size tells."""
        tier = self.repository.tier
        return tier.exists(pack.key) and tier.size(pack.key) == pack.size

    def opens(self, pack: PackHandle) -> bool:
        """Whether this process may open what the sealed pack holds; True for one that is gone or damaged, as later
        stages tell that better.
        """
        path, tier = Path(pack.path), self.repository.tier
        try:
            head = _first_bytes(path) if path.exists() else tier.read(pack.key, 0, HEADER_BYTES)
            found = parse_header(head, pack.size)
            self.repository.keyring.pack_cipher(found.epoch, found.id)
        except EpochLockedError:
            return False
        except (VmcellarError, OSError):
            return True
        return True

    def staged_or_placed(self, pack: PackHandle) -> bool:
        """Whether the sealed pack still exists somewhere."""
        path = Path(pack.path)
        return (path.exists() and path.stat().st_size == pack.size) or self.placed(pack)


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEADER_BYTES)


def _yield_to_others() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), CPU_NICENESS)


def instance_of(state: Path) -> str:
    """The name of this state directory, so that two of them never clear each other's landings. Makes it."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    path, new = state / "instance", state / f".instance-{secrets.token_hex(8)}"
    if not path.exists():
        new.write_text(secrets.token_hex(4))
        with suppress(FileExistsError):
            os.link(new, path)  # whole at once: two processes that begin together must agree on it
        new.unlink()
    return path.read_text().strip()


@cache
def _open(path: Path) -> Engine:
    from vmcellar.sources.libvirt_source import LibvirtSource  # noqa: PLC0415  (libvirt is loaded only where VMs are)

    config = load_config(path)
    repository = Repository.open(config)
    instance, remote = instance_of(config.state), config.libvirt.remote
    source = LibvirtSource(config.libvirt.uri, config.scratch, instance=instance, remote=remote)
    return Engine(config, repository, source)


def open_engine(config_path: Path | None = None) -> Engine:
    """The engine for a configuration file, one per process and file; errors of the file, the key and the
    repository.
    """
    return _open(find_config(config_path).resolve())
