"""A tier that fails on purpose: at a chosen operation, or as if the process had died there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vmcellar.errors import VmcellarError
from vmcellar.tiers.base import Tier, TierReader


class DiedError(BaseException):
    """Stands for a kill at this instant: no `except Exception` sees it."""


@dataclass
class FaultyTier:
    """Passes everything on to `inner`, and counts.

    At operation number `fail_at` of those named in `operations`, it raises `error` before anything happens, or after it
    has happened if `after`. From then on every operation raises, as nothing comes after a death. A test asks `fired`,
    so that a fault that was planned and never came is seen.
    """

    inner: Tier
    fail_at: int | None = None
    after: bool = False
    error: BaseException = field(default_factory=DiedError)
    operations: frozenset[str] = frozenset({"adopt", "put", "delete"})
    count: int = 0
    fired: bool = False

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def kind(self) -> str:
        return self.inner.kind

    def _before(self, operation: str) -> None:
        if self.fired and not isinstance(self.error, VmcellarError):
            raise self.error
        if operation in self.operations:
            self.count += 1
            if self.count == self.fail_at and not self.after:
                self.fired = True
                raise self.error

    def _after(self, operation: str) -> None:
        if operation in self.operations and self.count == self.fail_at and self.after and not self.fired:
            self.fired = True
            raise self.error

    def staging_dir(self) -> Path:
        return self.inner.staging_dir()

    def adopt(self, path: Path, key: str) -> None:
        self._before("adopt")
        self.inner.adopt(path, key)
        self._after("adopt")

    def put(self, key: str, data: bytes) -> None:
        self._before("put")
        self.inner.put(key, data)
        self._after("put")

    def get(self, key: str) -> bytes:
        self._before("get")
        return self.inner.get(key)

    def read(self, key: str, offset: int, length: int) -> bytes:
        self._before("read")
        return self.inner.read(key, offset, length)

    def open(self, key: str) -> TierReader:
        self._before("open")
        return self.inner.open(key)

    def size(self, key: str) -> int:
        self._before("size")
        return self.inner.size(key)

    def exists(self, key: str) -> bool:
        self._before("exists")
        return self.inner.exists(key)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        self._before("list")
        yield from self.inner.list(prefix)

    def delete(self, key: str) -> None:
        self._before("delete")
        self.inner.delete(key)
        self._after("delete")

    def free_bytes(self) -> int | None:
        return self.inner.free_bytes()

    def describe(self) -> str:
        return self.inner.describe()

    def clear_unfinished(self, older_than: float) -> Sequence[str]:
        self._before("clear_unfinished")
        return self.inner.clear_unfinished(older_than)
