"""repair: put whole copies of damaged and missing objects in their place, out of another copy of the repository.

An object has one content for ever, so a copy under the same name that passes every check is what was lost. It is
fetched beside the repository and checked there in full, and only then takes the place of what is damaged, at once.
What no copy can replace stays as it is: part of it may still be read. A crash at any instruction leaves each object
either as it was or whole, and the next run goes on.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vmcellar.errors import CancelledError, IntegrityError, PermanentError, TransientError, UsageError, VmcellarError
from vmcellar.memory import BufferPool
from vmcellar.progress import CancelToken, ProgressSink, no_progress
from vmcellar.repository import config_object, drops, layout, leases, scrub, whole
from vmcellar.repository.aside import set_aside
from vmcellar.repository.index import Index
from vmcellar.repository.index_parts import PackEntry
from vmcellar.repository.pack_reader import READ_MAX, PackReader, verify_pack
from vmcellar.repository.scrub_copies import damaged_beside_whole
from vmcellar.tiers.base import NotFoundError, Replaces, Tier
from vmcellar.tiers.cellar import CellarTier
from vmcellar.tiers.local import LocalTier

if TYPE_CHECKING:
    from vmcellar.repository.packs import PackRef
    from vmcellar.repository.repository import Repository
    from vmcellar.repository.scrub import ScrubReport

_log = logging.getLogger(__name__)
_FOLDER = "repair-"
_buffers = BufferPool(READ_MAX)


@dataclass(frozen=True, slots=True)
class RepairRequest:
    """What to check and mend: all, or with `point_id` that point, which is also brought back if it is missing here.

    Without `deep` packs are mended that are missing, cut short, or hold damaged map nodes; with it those that `choose`
    picks are read in full. A `dry_run` checks the copies and changes no object.
    """

    point_id: str | None = None
    deep: bool = False
    choose: scrub.Choice = list
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Repaired:
    """An object that is whole again (of a dry run: that a copy would make whole); `was` is damaged, missing, or
    unknown to the index.
    """

    kind: str
    key: str
    was: str


@dataclass(frozen=True, slots=True)
class NotRepaired:
    """An object that stays as it is, and why."""

    kind: str
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What was done, and `after`: how the repository stands now (of a dry run: as it stood before).

    `elsewhere` are points that only the copy has: dropped here since, or lost. `verify POINT --repair` brings one back.
    """

    repaired: tuple[Repaired, ...]
    not_repaired: tuple[NotRepaired, ...]
    elsewhere: tuple[str, ...]
    after: ScrubReport
    dry_run: bool


def repair(
    repository: Repository,
    copy: Tier,
    request: RepairRequest,
    progress: ProgressSink = no_progress,
    cancel: CancelToken | None = None,
) -> RepairReport:
    """Check, and mend what `copy` has whole; damage that stays is in the report, not raised.

    UsageError when the copy is of another repository; PermanentError while another repair, a gc or a rebuild of the
    index runs; CancelledError when stopped: what was mended stays mended. Reports fetched bytes as stage "repair".
    """
    _same_repository(repository, copy)
    with ExitStack() as stack:
        lease = None
        if not request.dry_run:
            work = leases.holding(repository.tier, repository.keyring, leases.REPAIR, repository.clock)
            lease = stack.enter_context(work)
            others = leases.remove_stale(repository.tier, repository.keyring, repository.clock())
            leases.refuse_second(other for other in others if other.id != lease.id)
        dropped = drops.found(repository.tier, repository.keyring, repository.clock(), clear=lease is not None)
        folder = stack.enter_context(_staging(repository, request.dry_run))
        pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="repair"))
        index = stack.enter_context(_index_of(copy, repository))
        given = (progress, cancel or CancelToken(), lease, dropped)
        return _Repair(repository, copy, request, index, folder, pool, *given).run()


def _same_repository(repository: Repository, copy: Tier) -> None:
    try:
        found = config_object.parse(copy.get(layout.CONFIG_KEY)).id
    except NotFoundError:
        if not any(True for prefix in (layout.META, layout.POINTS) for _ in copy.list(prefix)):
            raise UsageError(
                f"{copy!r} holds no copy of the repository", hint="name the folder that has config, data/ and meta/"
            ) from None
        return  # each object tells by its keys whether it is ours
    except IntegrityError:
        return
    if found != repository.id:
        raise UsageError(
            f"{copy!r} is repository {found.hex()}, not a copy of {repository.id.hex()}", hint="name the right place"
        )


@contextmanager
def _staging(repository: Repository, dry_run: bool) -> Iterator[Path]:
    """A folder from where objects are adopted. Alone under the lease, so what others left was left by the dead."""
    if dry_run:
        yield Path()
        return
    base = repository.tier.staging_dir()
    for left in base.glob(f"{_FOLDER}*"):
        shutil.rmtree(left, ignore_errors=True)
    folder = base / f"{_FOLDER}{secrets.token_hex(8)}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _index_of(copy: Tier, repository: Repository) -> Iterator[Index]:
    """Where the copy's objects lie, by its own index as far as that can be read; empty until it is refreshed."""
    with tempfile.TemporaryDirectory(prefix="vmcellar-") as folder:
        index = Index(copy, repository.keyring, Path(folder) / "index.sqlite")
        try:
            yield index
        finally:
            index.close()


@dataclass(slots=True)
class _Repair:
    """One run. One thread; packs are decoded on `pool`."""

    repository: Repository
    copy: Tier
    request: RepairRequest
    index: Index
    folder: Path
    pool: ThreadPoolExecutor
    progress: ProgressSink
    cancel: CancelToken
    lease: leases.HeldLease | None
    dropped: Mapping[str, str]
    repaired: list[Repaired] = field(default_factory=list)
    failed: list[NotRepaired] = field(default_factory=list)
    _tried: set[str] = field(default_factory=set)
    _read: set[bytes] = field(default_factory=set)
    _indexed: bool = False

    def run(self) -> RepairReport:
        """Small objects first, as the walk needs them; then packs, again as long as a mended one shows more."""
        tier = self.repository.tier
        self._records()
        report = self._check()
        while self._packs(report) and not self.request.dry_run:
            report = self._check()
        here = {key for key, _ in tier.list(layout.POINTS)}
        only = sorted(key.removeprefix(layout.POINTS) for key, _ in self.copy.list(layout.POINTS) if key not in here)
        return RepairReport(tuple(self.repaired), tuple(self.failed), tuple(only), report, self.request.dry_run)

    def _check(self) -> ScrubReport:
        """A scrub that reads no pack a second time that was whole."""
        report = self._scrub()
        damaged = {bytes.fromhex(key.rpartition("/")[2]) for key in self._wanted(report)}
        self._read -= damaged  # to be read again: they must be whole then
        return report

    def _scrub(self) -> ScrubReport:
        deep, progress, cancel = self.request.deep, self.progress, self.cancel
        wanted = self.request.point_id
        if wanted is not None and self.repository.tier.exists(layout.point_key(wanted)):
            point = self.repository.point(wanted)
            return scrub.verify_point(
                self.repository, point, deep=deep, choose=self._unread, progress=progress, cancel=cancel
            )
        return scrub.verify_all(self.repository, deep=deep, choose=self._unread, progress=progress, cancel=cancel)

    def _unread(self, packs: list[PackRef]) -> list[PackRef]:
        chosen = [pack for pack in self.request.choose(packs) if pack.id not in self._read]
        self._read.update(pack.id for pack in chosen)
        return chosen

    # small objects

    def _records(self) -> None:
        causes = scrub.check_index(self.repository) + scrub.check_pins(self.repository)
        causes += scrub.check_evidence(self.repository)
        causes += scrub.check_points(self.repository)[1]
        for cause in causes:
            self.cancel.check()
            if self.repository.tier.exists(cause.name):  # else somebody deleted it since
                self._record(cause.kind, cause.name, "damaged")
        wanted = self.request.point_id
        if wanted is not None and not self.repository.tier.exists(layout.point_key(wanted)):
            self._record("point", layout.point_key(wanted), "missing")

    def _record(self, kind: str, key: str, was: str) -> None:
        try:
            data = self.copy.get(key)
            whole.check_record(self.repository.keyring, self.repository.id, key, data)
        except CancelledError:
            raise
        except (VmcellarError, ValueError) as error:
            self.failed.append(NotRepaired(kind, key, f"no whole copy: {_text(error)}"))
            return
        if not self.request.dry_run:
            path = self.folder / secrets.token_hex(8)
            path.write_bytes(data)
            self._place(path, key)
        self.repaired.append(Repaired(kind, key, was))

    # packs

    def _wanted(self, report: ScrubReport) -> dict[str, PackRef | None]:
        """The packs to look at, by key; with a PackRef where only the copy's index knows of it."""
        keys: dict[str, PackRef | None] = {f.name: None for f in report.findings if f.kind == "pack"}
        objects = [bytes.fromhex(f.name) for f in report.findings if f.kind in ("node", "chunk")]
        if not objects:
            return keys
        holders = self.repository.index.holders(objects)
        ids = set().union(*holders.values())
        keys |= {pack.key: None for pack in self.repository.index.packs() if pack.id in ids}
        unknown = [wanted for wanted in objects if wanted not in holders]
        if unknown:
            self._read_index()
            for found in self.index.locate(unknown).values():
                keys.setdefault(found.pack.key, found.pack)
        return keys

    def _read_index(self) -> None:
        if not self._indexed:
            self._indexed = True
            try:
                self.index.refresh()
            except VmcellarError as error:
                _log.warning("the copy's index cannot be read in full: %s", error.message)

    def _packs(self, report: ScrubReport) -> bool:
        """Mend what is new in the report; whether anything was mended."""
        mended = self._copies(report)
        for key, pack in self._wanted(report).items():
            self.cancel.check()
            if key not in self._tried:
                self._tried.add(key)
                mended += self._pack(key, pack)
        if mended and not self.request.dry_run:
            self.repository.index.forget_damage(mended)
        return bool(mended)

    def _copies(self, report: ScrubReport) -> list[bytes]:
        """Delete damaged copies of packs that another tier has whole; the ids of these packs."""
        mended = []
        for key in sorted({f.name.partition(" on ")[0] for f in report.findings if f.kind == "copy"}):
            self.cancel.check()
            try:
                names = self._drop_damaged(key)
            except (PermanentError, IntegrityError) as error:
                self.failed.append(NotRepaired("copy", key, _text(error)))
                continue
            self.repaired += [Repaired("copy", f"{key} on {name}", "damaged") for name in names]
            mended += [bytes.fromhex(key.rpartition("/")[2])] if names else []
        return mended

    def _drop_damaged(self, key: str) -> list[str]:
        """Delete the copies that are damaged if another is whole; the names of their places."""
        repository = self.repository
        damaged = damaged_beside_whole(repository.tier, key, self._reads_whole)
        if damaged and self.lease is not None:
            if key in self.dropped:
                raise PermanentError(f"{key}: {self.dropped[key]}")
            with drops.announced(repository.tier, repository.keyring, key, repository.clock):
                for place in damaged:
                    self.lease.check()
                    place.delete(key)
        return [place.name for place in damaged]

    def _pack(self, key: str, unknown: PackRef | None) -> list[bytes]:
        """The pack's id when it is whole now and was not."""
        tier = self.repository.tier
        was = "damaged" if tier.exists(key) else "missing"
        try:
            if was == "missing" or not self._is_whole(tier, key):
                self._fetch(key)
            elif unknown is not None:
                was = "unknown to the index"
            else:
                self.failed.append(NotRepaired("pack", key, "it is whole; type `vmcellar rebuild-index`"))
                return []
            if unknown is not None and not self.request.dry_run:
                with PackReader(tier, key, self.repository.keyring) as reader:
                    self.repository.index.add([PackEntry(reader.pack, reader.toc())])
        except CancelledError:
            raise
        except VmcellarError as error:
            self.failed.append(NotRepaired("pack", key, _text(error)))
            return []
        self.repaired.append(Repaired("pack", key, was))
        return [bytes.fromhex(key.rpartition("/")[2])]

    def _is_whole(self, tier: Tier, key: str) -> bool:
        try:
            return self._reads_whole(tier, key)
        except (OSError, TransientError):  # a device that does not give it back
            return False

    def _reads_whole(self, tier: Tier, key: str) -> bool:
        """As `_is_whole`, but what cannot be read now may be whole: its error comes out."""
        with suppress(IntegrityError):
            self._verify(tier, key)
            return True
        return False

    def _verify(self, tier: Tier, key: str) -> None:
        verify_pack(tier, key, self.repository.keyring, self.pool, cancel=self.cancel)

    def _fetch(self, key: str) -> None:
        """Replace the pack by the copy's, which is checked where nothing can change it any more."""
        try:
            if self.request.dry_run:
                self._verify(self.copy, key)
                return
            fetched = LocalTier(self.folder, name="fetched copy")
            self._download(key, fetched.path / key)
            self._verify(fetched, key)
        except IntegrityError as error:
            raise IntegrityError(f"no whole copy: {error.message}") from error
        except NotFoundError as error:
            raise NotFoundError(f"no copy: {error.message}") from error
        self._place(fetched.path / key, key)
        self._verify(_near(self.repository.tier), key)
        self._drop_damaged(key)

    def _download(self, key: str, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.copy.open(key) as reader, path.open("xb") as out, _buffers.buffer() as buffer:
            for start in range(0, reader.size, READ_MAX):
                self.cancel.check()
                view = buffer[: min(READ_MAX, reader.size - start)]
                self.repository.restore_pace.take(self.copy.name, len(view), self.cancel)
                reader.read_into(start, view)
                out.write(view)
                self.progress("repair", len(view))

    def _place(self, path: Path, key: str) -> None:
        """Put a proven file where it belongs; a tier that cannot replace at once first sets the damaged bytes aside."""
        tier = _near(self.repository.tier)
        if not tier.exists(key):
            tier.adopt(path, key)
        elif isinstance(tier, Replaces):
            tier.replace(path, key)
        else:
            set_aside(tier, key)
            tier.delete(key)
            tier.adopt(path, key)


def _near(tier: Tier) -> Tier:
    """Where what is mended goes: hot, if there are several."""
    return tier.hot if isinstance(tier, CellarTier) else tier


def _text(error: Exception) -> str:
    return error.message if isinstance(error, VmcellarError) else str(error)
