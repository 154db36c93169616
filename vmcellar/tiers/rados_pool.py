"""A connection to a Ceph pool: two namespaces, asynchronous requests with a time limit, our errors.

librados waits for ever by default; here each request ends with TransientError after the tier's `timeout`. A pool that
is full (its quota, or the cluster) answers at once instead of holding the writer. Source: librados API, python-rados.
"""

from __future__ import annotations

import errno
import json
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from vmcellar.config.tiers import TierSettings
from vmcellar.errors import PermanentError, TransientError, VmcellarError
from vmcellar.tiers.base import ExistsError, NotFoundError

DEPTH = 16
"""Requests of one caller that are on their way at once."""

_ROOM = "raise the pool's quota or add OSDs (`ceph df`, `ceph osd pool get-quota POOL`), or prune old points"
_RIGHTS = "the user needs mon 'allow r' and osd 'allow rwx pool=POOL': see docs/tiers.md, then type `vmcellar doctor`"
_LATER = "see `ceph health detail`; then repeat the command"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_RIGHT = (errno.EACCES, errno.EPERM)


def load_rados() -> Any:
    """Debian's binding; PermanentError when it is not installed."""
    try:
        import rados  # noqa: PLC0415  (only hosts with a Ceph tier need it)
    except ImportError as error:
        raise PermanentError(f"Python cannot import rados: {error}", hint="apt install python3-rados") from error
    return rados


class Pool:
    """The tier's part of a pool. `heads` and `parts` are I/O contexts; any thread may use them.

    The connection ends with the object, and with the process at the latest: librados' threads would meet what the end
    of the process has taken apart, and abort it.
    """

    def __init__(self, settings: TierSettings, what: str) -> None:
        """Connect; PermanentError for a wrong key, a missing file or pool, TransientError when no monitor answers."""
        self.rados = load_rados()
        self._what = what
        self.name, _, self.namespace = settings.storage.removeprefix("ceph::").partition("/")
        self._cluster = self._connect(settings)
        contexts: list[Any] = []
        weakref.finalize(self, _end, self._cluster, contexts)
        self.heads, self.parts = (self._context(name) for name in (self.namespace, f"{self.namespace}.parts"))
        contexts += self.heads, self.parts

    def _connect(self, settings: TierSettings) -> Any:
        if not settings.conf.is_file():
            raise PermanentError(
                f"{self._what}: {settings.conf}: no such file", hint="name the cluster's file in `conf:` of the tier"
            )
        limit = str(settings.timeout)
        options = {"client_mount_timeout": limit, "rados_mon_op_timeout": limit, "rados_osd_op_timeout": limit}
        if settings.keyring is not None:
            options["keyring"] = str(settings.keyring)
        with self.errors(f"connecting as {settings.user}"):
            cluster = self.rados.Rados(conffile=str(settings.conf), name=settings.user, conf=options)
            try:
                cluster.connect()
            except BaseException as error:
                cluster.shutdown()
                if isinstance(error, self.rados.ObjectNotFound):
                    raise PermanentError(
                        f"{self._what}: no key for {settings.user}", hint="name its file in `keyring:` of the tier"
                    ) from error
                raise
        return cluster

    def _context(self, namespace: str) -> Any:
        self.check_pool()
        with self.errors("opening the pool"):
            context = self._cluster.open_ioctx(self.name)
        context.set_namespace(namespace)
        context.set_osdmap_full_try()
        return context

    def check_pool(self) -> None:
        """PermanentError when the pool is gone: its objects would look as if they had never been (pitfall 20)."""
        with self.errors("looking for the pool"):
            there = self._cluster.pool_exists(self.name)
        if not there:
            raise PermanentError(
                f"{self._what}: there is no pool {self.name}",
                hint=f"make it (ceph osd pool create {self.name}), or name the right one in vmcellar.yaml",
            )

    @contextmanager
    def errors(self, about: str) -> Iterator[None]:
        """Turn librados' errors into ours; `about` is the key, or what is being done."""
        try:
            yield
        except self.rados.Error as error:
            raise self.translate(error, about) from error

    def translate(self, error: Any, about: str) -> VmcellarError:
        """The error of our tree."""
        number = abs(getattr(error, "errno", 0) or 0)
        what = f"{self._what}: {about}"
        text = f"{what}: {str(error).strip()}"
        if number == errno.ENOENT:
            return NotFoundError(f"{what}: no such object", hint="type `vmcellar verify --all` to see what it touches")
        if number == errno.EEXIST:
            return ExistsError(f"{what} exists already", hint="objects are never overwritten; choose a new name")
        if number in _FULL:
            return PermanentError(text, hint=_ROOM)
        if number in _RIGHT:
            return PermanentError(text, hint=_RIGHTS)
        if number == errno.EFBIG:
            return PermanentError(text, hint="make `object:` of the tier smaller than the cluster's osd_max_write_size")
        return TransientError(text, hint=_LATER)

    def run(self, about: str, begin: Iterable[Callable[[], Any]]) -> list[Any]:
        """Begin each request, at most DEPTH at once, and wait for all; their completions, in order.

        The first error is raised when none is on its way any more: a later one would write after the caller went on.
        """
        done: list[Any] = []
        waiting: deque[Any] = deque()
        failure: VmcellarError | None = None
        for start in begin:
            if len(waiting) >= DEPTH:
                failure = failure or self._ended(about, waiting.popleft(), done)
            if failure:
                break
            try:
                waiting.append(start())
            except self.rados.Error as error:
                failure = self.translate(error, about)
                break
        while waiting:
            failure = self._ended(about, waiting.popleft(), done) or failure
        if failure:
            raise failure
        return done

    def _ended(self, about: str, completion: Any, done: list[Any]) -> VmcellarError | None:
        completion.wait_for_complete_and_cb()
        code = completion.get_return_value()
        if code < 0:
            return self.translate(self.rados.OSError(errno=-code, message=errno.errorcode.get(-code, "")), about)
        done.append(completion)
        return None

    def read(self, context: Any, name: str, offset: int, length: int, about: str) -> bytes:
        """Up to `length` bytes of a RADOS object."""
        with self.errors(about):
            data: bytes = context.read(name, length, offset)
        return data

    def read_later(self, context: Any, name: str, offset: int, length: int, into: dict[int, bytes], slot: int) -> Any:
        """Begin a read whose bytes go to `into[slot]`."""

        def arrived(_: object, data: bytes | None) -> None:
            into[slot] = data or b""

        return context.aio_read(name, length, offset, arrived)

    def write_new(self, name: str, data: bytes, about: str) -> None:
        """Write a head that must not exist; ExistsError when it does. Atomic."""
        with self.errors(about), self.rados.WriteOpCtx() as operation:
            operation.new(self.rados.LIBRADOS_CREATE_EXCLUSIVE)
            operation.write_full(data)
            self.heads.operate_write_op(operation, name)

    def names(self, context: Any) -> list[str]:
        """Every object of a namespace, sorted; complete or an error."""
        with self.errors("listing"):
            found = sorted(str(entry.key) for entry in context.list_objects())
        self.check_pool()
        return found

    def free_bytes(self) -> int | None:
        """What the pool can still take, by `ceph df` and its quota; None when this user may not ask."""
        code, out, _ = self._cluster.mon_command(json.dumps({"prefix": "df", "format": "json"}), b"")
        if code:
            return None
        for pool in json.loads(out)["pools"]:
            if pool["name"] == self.name:
                stats = pool["stats"]
                room = int(stats["max_avail"])
                quota = int(stats.get("quota_bytes", 0))
                return min(room, max(0, quota - int(stats["stored"]))) if quota else room
        return None

    def facts(self) -> str:
        """Copies, or erasure code, and the cluster."""
        asked = json.dumps({"prefix": "osd pool get", "pool": self.name, "var": "size", "format": "json"})
        code, out, _ = self._cluster.mon_command(asked, b"")
        copies = "" if code else f", {json.loads(out)['size']} copies"
        return f"pool {self.name}{copies}, cluster {self._cluster.get_fsid()}"


def _end(cluster: Any, contexts: list[Any]) -> None:
    for context in contexts:
        context.close()
    cluster.shutdown()
