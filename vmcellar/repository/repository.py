"""A repository: a tier, the keys to it, its index, and the one order in which anything becomes part of it.

Write order (docs/repository-format.md, section 11): packs durable, index part, point. A crash at any instruction leaves
objects that nothing refers to, never a point that cannot be restored and never the loss of an older one.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from vmcellar.crypto import slots
from vmcellar.crypto.recipient import PrivateKey, PublicKey
from vmcellar.errors import IntegrityError, PermanentError, UsageError, VmcellarError
from vmcellar.repository import ahead, config_object, layout, leases, points
from vmcellar.repository.codec import Compression
from vmcellar.repository.commit import Commit
from vmcellar.repository.diskmap import DiskMap
from vmcellar.repository.index import Index
from vmcellar.repository.pack_format import PackRef, Table
from vmcellar.repository.packs import Location, PackWriter
from vmcellar.repository.points import Artifact, DiskRecord, RestorePoint
from vmcellar.repository.points_cache import PointsCache
from vmcellar.repository.read_ahead import contents
from vmcellar.repository.restore_pace import TierPace, restore_pace
from vmcellar.repository.salvage import read_packs
from vmcellar.tiers.base import NotFoundError, Tier
from vmcellar.tiers.mark import no_repository
from vmcellar.tiers.registry import add_tier, make_tier, open_tiers

if TYPE_CHECKING:
    from vmcellar.config.tiers import TierSettings
    from vmcellar.crypto.base import Keyring

_log = logging.getLogger(__name__)

_NODE_CACHE = 4096
"""Map nodes that are kept in memory: about 8 MiB, and 30 MiB when all are fragmented."""

_NEWEST = 256
"""Points that are read at once when the newest of a VM is looked for."""


class Settings(ahead.Settings, Protocol):
    """What a configuration must tell to open a repository; `vmcellar.config.Config` does."""

    @property
    def state(self) -> Path:
        """Where the caches may lie."""
        ...

    def other_tiers(self) -> Mapping[str, TierSettings]:
        """The tiers behind it by name, nearest first."""
        ...


class Repository:
    """An open repository. Any thread; any number of processes and hosts at once."""

    def __init__(
        self,
        tier: Tier,
        keyring: Keyring,
        repository_id: bytes,
        cache_dir: Path,
        clock: leases.Clock = time.time,
    ) -> None:
        """`clock` gives seconds since the epoch."""
        self.id = repository_id
        self.clock = clock
        self.cache_dir = cache_dir
        self.tier = tier
        self.keyring = keyring
        self.restore_pace = TierPace()
        self.index = Index(tier, keyring, cache_dir / f"index-{repository_id.hex()}.sqlite")
        self._nodes: OrderedDict[bytes, bytes] = OrderedDict()
        self._points: dict[str, RestorePoint] = {}
        self._unreadable: dict[str, IntegrityError] = {}
        self._held: dict[str, leases.HeldLease] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, config: Settings, private: PrivateKey | None = None, *, refresh: bool = True) -> Self:
        """The repository of a configuration; PermanentError with what to do when there is none, or for a wrong key.

        A recipient's `private` key opens it in place of the passphrase, and in recipient mode alone opens disk bytes.
        Without `refresh` the index is not looked at, so that a damaged one can be made anew.
        """
        tier = open_tiers(config)
        opened = cls(tier, *unlock(tier, private or passphrase_of(config)), config.state / "cache")
        opened.restore_pace = restore_pace(config)
        return opened._refreshed() if refresh else opened

    @classmethod
    def init(cls, config: Settings, recipients: Sequence[PublicKey] = ()) -> Self:
        """Make the repository of a configuration (and its local directory) and open it; PermanentError if there is one.

        With `recipients` it is one in recipient mode: only their private keys will open disk bytes.
        """
        passphrase = passphrase_of(config)
        make(make_tier("hot", config.hot_tier(), config.state), passphrase, recipients)
        for name in config.other_tiers():
            add_tier(config, name)
        return cls.open(config)

    def _refreshed(self) -> Self:
        self.index.refresh()
        return self

    def close(self) -> None:
        """Let the index cache go."""
        self.index.close()

    @contextmanager
    def working_on(self, vm: str) -> Iterator[leases.HeldLease]:
        """Hold a lease for a backup of `vm` from before its first look at the index until after its commit.

        While it lives, no gc takes what the backup relies on. Raises what the tier raises.
        """
        with leases.holding(self.tier, self.keyring, f"backup {vm}", self.clock) as lease:
            self.index.refresh(writing=True)
            with self._lock:
                self._held[vm] = lease
            try:
                yield lease
            finally:
                with self._lock:
                    self._held.pop(vm, None)

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Hold a lease while the block reads: no gc deletes what a prune drops meanwhile. `what` says it to people."""
        with leases.reading(self.tier, self.keyring, what, self.clock):
            try:
                self.index.refresh()
            except VmcellarError as error:  # what is missed by it, is named where it is needed
                _log.warning("%s goes on with the index as this host knows it: %s", what, error.message)
            yield

    def check_kept(self, point: RestorePoint) -> None:
        """PermanentError when the point was dropped. Asked under a lease, it stays whole while that is held."""
        if not self.tier.exists(layout.point_key(point.id)):
            raise PermanentError(f"point {point.id} of {point.vm} was dropped meanwhile")

    def pack_writer(self, folder: Path, compression: str) -> PackWriter:
        """A writer of data packs that builds them in `folder`; UsageError for an unknown compression."""
        return PackWriter(self.keyring, folder, compression=Compression.parse(compression))

    # points

    def points(self) -> list[RestorePoint]:
        """All restore points by time; IntegrityError names one that is damaged or forged."""
        return self._every_point(strict=True)

    def readable_points(self) -> list[RestorePoint]:
        """All restore points that can be read, by time, with a warning for each other one.

        For what needs only some of them: one VM's damaged point stops no other VM's backup (pitfall 22).
        """
        return self._every_point(strict=False)

    def _every_point(self, *, strict: bool) -> list[RestorePoint]:
        names = self._point_names()
        return sorted(self._points_named(names, names, strict=strict), key=lambda point: (point.time, point.id))

    def _point_names(self) -> set[str]:
        """The ids of all points; what is remembered of others goes."""
        names = {key.removeprefix(layout.POINTS) for key, _ in self.tier.list(layout.POINTS)}
        with self._lock:
            self._points = {name: point for name, point in self._points.items() if name in names}
        return names

    def _points_named(self, wanted: Iterable[str], every: set[str], *, strict: bool) -> list[RestorePoint]:
        """These of `every` point that there is."""
        with self._lock:
            found = {name: self._points[name] for name in wanted if name in self._points}
        missing = [name for name in wanted if name not in found]
        if missing:
            found.update(self._read_points(missing, every, strict=strict))
        return list(found.values())

    def _read_points(self, wanted: Iterable[str], every: set[str], *, strict: bool) -> dict[str, RestorePoint]:
        """Read these from the tier; a signature is not checked again on bytes that this host has seen pass."""
        cache = PointsCache(self.keyring, self.id, self.cache_dir / f"points-{self.id.hex()}.sqlite")
        before = cache.load()
        found, passed = {}, {}
        with closing(contents(self.tier, [layout.point_key(name) for name in sorted(wanted)])) as objects:
            for key, content in objects:
                name = key.removeprefix(layout.POINTS)
                try:
                    digest = cache.digest(name, data := content())
                    same = before.get(name) == digest
                    found[name] = points.decode(self.keyring, self.id, name, data, signature_passed=same)
                except NotFoundError:
                    if self.tier.exists(key):
                        raise
                    continue  # pruned since it was listed
                except IntegrityError as error:
                    if strict:
                        raise
                    _log.warning("%s; it is left out (`vmcellar verify --all` says more)", error.message)
                    with self._lock:
                        self._unreadable[name] = error
                    continue
                if not same:
                    passed[name] = digest
        if passed or before.keys() - every:
            cache.update(before.keys() - every, passed)
        with self._lock:
            self._points.update(found)
            self._unreadable = {name: error for name, error in self._unreadable.items() if name not in found}
        return found

    def points_of(self, vm: str) -> list[RestorePoint]:
        """The readable restore points of one VM, oldest first."""
        return [point for point in self.readable_points() if point.vm == vm]

    def point(self, name: str) -> RestorePoint:
        """The point that an id, a unique prefix of one, or `VM@latest` names."""
        if points.is_point_id(name) and self.tier.exists(layout.point_key(name)):
            return self._read_point(name)
        vm, _, which = name.rpartition("@")
        newest = self._newest_of(vm) if which == "latest" else []
        return points.choose(newest or self.readable_points(), name)

    def _newest_of(self, vm: str) -> list[RestorePoint]:
        """The points of a VM in its newest second, without reading those before: ids begin with the time.

        IntegrityError names a newer point that cannot be read: it may be the one that is meant.
        """
        every = self._point_names()
        ordered = sorted(every, reverse=True)
        found: list[RestorePoint] = []
        for start in range(0, len(ordered), _NEWEST):
            batch = ordered[start : start + _NEWEST]
            if found and batch[0][: points.STAMP] < found[0].id[: points.STAMP]:
                break
            found += [point for point in self._points_named(batch, every, strict=False) if point.vm == vm]
        oldest = min((point.id[: points.STAMP] for point in found), default="")
        with self._lock:
            doubtful = sorted(name for name in self._unreadable.keys() & every if name[: points.STAMP] >= oldest)
            if doubtful:
                raise self._unreadable[doubtful[-1]]
        return found

    def _read_point(self, point_id: str) -> RestorePoint:
        with self._lock:
            known = self._points.get(point_id)
        if known is None:
            data = self.tier.get(layout.point_key(point_id))
            known = points.decode(self.keyring, self.id, point_id, data)
            with self._lock:
                self._points[point_id] = known
        return known

    def commit(
        self,
        packs: Mapping[bytes, Table],
        nodes: Mapping[bytes, bytes],
        artifacts: Mapping[str, bytes],
        point: RestorePoint,
        pool: Executor,
    ) -> RestorePoint:
        """Make a point part of the repository, last of all; see `vmcellar.repository.commit`."""
        whole = replace(point, repository=self.id.hex())
        committed = Commit(self, pool, self._held.get(point.vm)).run(packs, nodes, artifacts, whole)
        with self._lock:
            self._points[committed.id] = committed
        return committed

    # maps and objects

    def map(self, disk: DiskRecord) -> DiskMap:
        """The map of a disk of a point; IntegrityError when its record contradicts itself."""
        found = DiskMap(self, disk.size, bytes.fromhex(disk.root))
        if found.level != disk.level:
            raise IntegrityError(f"disk {disk.target}: a map of level {disk.level} does not fit {disk.size} bytes")
        return found

    def empty_map(self, size: int) -> DiskMap:
        """The map of a disk of zeroes."""
        return DiskMap(self, size)

    def artifact(self, artifact: Artifact) -> bytes:
        """The bytes of an artifact, checked."""
        ids = [bytes.fromhex(chunk) for chunk in artifact.chunks]
        found = self.read_objects(ids)
        data = b"".join(found[chunk] for chunk in ids)
        if len(data) != artifact.size:
            raise IntegrityError(f"artifact {artifact.name} has {len(data)} bytes instead of {artifact.size}")
        return data

    def node_id(self, data: bytes) -> bytes:
        """See NodeStore."""
        return self.keyring.node_id(data)

    def fetch_nodes(self, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """See NodeStore."""
        with self._lock:
            found = {node: self._nodes[node] for node in ids if node in self._nodes}
        missing = [node for node in dict.fromkeys(ids) if node not in found]
        if missing:
            fetched = self.read_objects(missing)
            self._remember(fetched)
            found.update(fetched)
        return found

    def _remember(self, fetched: Mapping[bytes, bytes]) -> None:
        with self._lock:
            self._nodes.update(fetched)
            while len(self._nodes) > _NODE_CACHE:
                self._nodes.popitem(last=False)

    def read_objects(self, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """The checked bytes of all these objects, all held in memory; IntegrityError names one that is missing."""
        return read_packs(self.tier, self.keyring, by_pack(self.locate(ids).values()))

    def locate(self, ids: Sequence[bytes]) -> dict[bytes, Location]:
        """Where all these objects lie; IntegrityError names one that no index part knows."""
        found = self.index.locate(ids)
        if len(found) < len(set(ids)):
            self.index.refresh()
            found = self.index.locate(ids)
        for wanted in ids:
            if wanted not in found:
                raise IntegrityError(
                    f"object {wanted.hex()} is in no pack that the index names",
                    hint="type `vmcellar rebuild-index`, then `vmcellar verify --all` to see what is still missing",
                )
        return found


def by_pack(found: Iterable[Location]) -> Iterator[tuple[PackRef, list[Location]]]:
    """The locations pack by pack, in the order they lie there."""
    ordered = sorted(found, key=lambda location: (location.pack.id, location.offset))
    for pack, objects in groupby(ordered, key=lambda location: location.pack):
        yield pack, list(objects)


def make(tier: Tier, passphrase: bytes, recipients: Sequence[PublicKey] = ()) -> bytes:
    """Make an empty repository with new keys on a tier and return its id; PermanentError when there is one.

    The config object comes last, so a crash leaves no repository; the next call goes on with the keys it finds.
    """
    if tier.exists(layout.CONFIG_KEY):
        raise PermanentError(f"{tier!r} holds a repository already", hint="use it, or name another place")
    slots.create(tier, passphrase, recipients)
    keyring = slots.unlock(tier, passphrase)
    repository_id = secrets.token_bytes(layout.NAME_BYTES)
    tier.put(layout.CONFIG_KEY, config_object.encode(keyring, repository_id))
    return repository_id


def unlock(tier: Tier, key: bytes | PrivateKey) -> tuple[Keyring, bytes]:
    """The open keys and the id of the repository on a tier; PermanentError when there is none or the key is wrong."""
    try:
        data = tier.get(layout.CONFIG_KEY)
    except NotFoundError as error:
        raise no_repository(tier) from error
    found = config_object.parse(data)
    keyring = ahead.keyring(tier, key) if isinstance(key, bytes) else slots.unlock_private(tier, key)
    config_object.check(keyring, found)
    return keyring, found.id


def passphrase_of(config: Settings) -> bytes:
    """What the configuration names; UsageError when it names nothing, and what reading it raises."""
    if config.key is None:
        raise UsageError("vmcellar.yaml names no key", hint="add `key:` with `file: PATH` of the passphrase")
    return config.key.read()
