"""A tier in memory, for parsers that read from one; no durability, no staging."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.crypto.store import MemoryStore
from vmcellar.errors import IntegrityError
from vmcellar.tiers.base import NotFoundError


class MemoryTier(MemoryStore):
    """The whole Protocol but for files."""

    name, kind = "hot", "memory"

    def get(self, key: str) -> bytes:
        try:
            return self.objects[key]
        except KeyError as error:
            raise NotFoundError(f"{key} is missing") from error

    def delete(self, key: str) -> None:
        self.get(key)
        super().delete(key)

    def read(self, key: str, offset: int, length: int) -> bytes:
        data = self.get(key)[offset : offset + length]
        if len(data) != length:
            raise IntegrityError(f"{key} ends before byte {offset + length}")
        return data

    def open(self, key: str) -> MemoryReader:
        return MemoryReader(key, self.get(key))

    def size(self, key: str) -> int:
        return len(self.get(key))

    def exists(self, key: str) -> bool:
        return key in self.objects

    def free_bytes(self) -> int | None:
        return None

    def staging_dir(self) -> Path:
        raise NotImplementedError  # a copy to read from: nothing is staged or adopted

    def describe(self) -> str:
        return "memory"

    def clear_unfinished(self, older_than: float) -> Sequence[str]:
        del older_than
        return ()

    def adopt(self, path: Path, key: str) -> None:
        raise NotImplementedError  # as above


class MemoryReader:
    """One object."""

    def __init__(self, key: str, data: bytes) -> None:
        self._key, self._data = key, data
        self.size = len(data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        data = self._data[offset : offset + len(buffer)]
        if len(data) != len(buffer):
            raise IntegrityError(f"{self._key} ends before byte {offset + len(buffer)}")
        buffer[:] = data

    def close(self) -> None: ...

    def __enter__(self) -> MemoryReader:
        return self

    def __exit__(self, *_: object) -> None: ...
