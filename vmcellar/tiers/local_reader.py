"""Reading an object of a directory, around the page cache where that can be."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from vmcellar.memory import PAGE
from vmcellar.tiers.base import Tier, too_short
from vmcellar.tiers.local_errors import translate

_NO_DIRECT = (errno.EINVAL, errno.EOPNOTSUPP)


class LocalReader:
    """One open file: O_DIRECT where the caller's alignment and the file system allow it."""

    def __init__(self, tier: Tier, key: str, path: Path) -> None:
        self._tier, self._key, self._path = tier, key, path
        self._closed = False
        self._lock = threading.Lock()
        self._plain = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._direct = _open_direct(path)
        self.size = os.fstat(self._plain).st_size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See TierReader.read_into."""
        done = 0
        try:
            while done < len(buffer):
                count = self._read_some(offset + done, buffer[done:])
                if count == 0:
                    raise too_short(self._tier, self._key, offset, len(buffer))
                done += count
        except OSError as error:
            raise translate(error, f"{self._tier!r}: {self._key}") from error

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        if self._direct >= 0 and not (offset % PAGE or len(buffer) % PAGE):
            try:
                return os.preadv(self._direct, [buffer], offset)
            except OSError as error:
                if error.errno not in _NO_DIRECT:
                    raise
        return os.preadv(self._plain, [buffer], offset)

    def close(self) -> None:
        """See TierReader.close."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        os.close(self._plain)
        if self._direct >= 0:
            os.close(self._direct)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_direct(path: Path) -> int:
    with suppress(OSError):
        return os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    return -1
