"""Packs that stay open between reads, shared by threads: on a remote tier, to open one is a request of its own."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from vmcellar.repository.pack_reader import PackReader

if TYPE_CHECKING:
    from vmcellar.crypto.base import Keyring
    from vmcellar.repository.pack_format import PackRef
    from vmcellar.tiers.base import Tier

IDLE_MOST = 16
"""So many packs stay open that nobody reads; whoever reads in the order of packs comes back to the last few alone."""


class _Shared:
    """One pack, and how many read it. `lock` is held while it is opened, so that one request serves all."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.reader: PackReader | None = None
        self.users = 0


class OpenPacks:
    """Open packs of one tier. Any thread; close it after use (it is a context manager), when nobody reads any more."""

    def __init__(self, tier: Tier, keyring: Keyring) -> None:
        self._tier = tier
        self._keyring = keyring
        self._lock = threading.Lock()
        self._packs: OrderedDict[PackRef, _Shared] = OrderedDict()

    @contextmanager
    def reader(self, pack: PackRef) -> Iterator[PackReader]:
        """The pack, open; raises what opening it raises. A block that ends with an error has the next one open anew."""
        shared = self._take(pack)
        try:
            with shared.lock:
                if shared.reader is None:
                    shared.reader = PackReader(self._tier, pack.key, self._keyring, pack=pack)
            yield shared.reader
        except BaseException:
            self._forget(pack, shared)
            raise
        finally:
            self._release(pack, shared)

    def _take(self, pack: PackRef) -> _Shared:
        with self._lock:
            shared = self._packs.setdefault(pack, _Shared())
            self._packs.move_to_end(pack)
            shared.users += 1
            return shared

    def _forget(self, pack: PackRef, shared: _Shared) -> None:
        with self._lock:
            if self._packs.get(pack) is shared:
                del self._packs[pack]

    def _release(self, pack: PackRef, shared: _Shared) -> None:
        with self._lock:
            shared.users -= 1
            over = [shared] if not shared.users and self._packs.get(pack) is not shared else []
            idle = [key for key, each in self._packs.items() if not each.users]
            over += [self._packs.pop(key) for key in idle[: max(0, len(idle) - IDLE_MOST)]]
        _close(over)

    def close(self) -> None:
        """Let all of them go; harmless twice."""
        with self._lock:
            over = list(self._packs.values())
            self._packs.clear()
        _close(over)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close(packs: list[_Shared]) -> None:
    for shared in packs:
        if shared.reader is not None:
            shared.reader.close()
