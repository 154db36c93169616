"""Compression of chunks: one compressor per thread and level, raw where it does not pay."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass

import zstandard

from vmcellar.errors import IntegrityError, UsageError
from vmcellar.repository.layout import METHOD_RAW, METHOD_ZSTD

AUTO = 0
"""The level that `zstd:auto` stands for: nearly as fast as level 1, 2 to 4 % smaller on programs (docs/performance.md).

A larger hash table and shorter matches than level 1 has, in the same fast strategy.
"""
_AUTO_PARAMETERS = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST, window_log=20, hash_log=15, min_match=6, chain_log=6, search_log=1
)

_FORM = re.compile(r"zstd:(auto|[1-9]|1\d)")
_local = threading.local()


@dataclass(frozen=True, slots=True)
class Compression:
    """How new chunks are compressed: at zstd's `level`, AUTO, or not at all for None."""

    level: int | None = AUTO

    @classmethod
    def parse(cls, text: str) -> Compression:
        """From `zstd:1` to `zstd:19`, `zstd:auto` or `none`; UsageError otherwise."""
        if text == "none":
            return cls(None)
        found = _FORM.fullmatch(text)
        if found is None:
            raise UsageError(f"compression: {text} is not known", hint="use zstd:auto, zstd:1 to zstd:19, or none")
        return cls(AUTO if found[1] == "auto" else int(found[1]))

    def encode(self, plain: bytes | memoryview) -> tuple[int, bytes | memoryview]:
        """(method, bytes to store): compressed if that is shorter, else `plain` itself. Frees the GIL."""
        if self.level is None or len(plain) == 0:
            return METHOD_RAW, plain
        packed = _compressor(self.level).compress(plain)
        return (METHOD_ZSTD, packed) if len(packed) < len(plain) else (METHOD_RAW, plain)


def decode(method: int, stored: bytes, length: int) -> bytes:
    """The plain bytes; IntegrityError when they are not `length` bytes or no zstd frame. Frees the GIL."""
    if method == METHOD_ZSTD:
        return _decompress(stored, length)
    check_raw(method, len(stored), length)
    return stored


def check_raw(method: int, stored: int, length: int) -> None:
    """IntegrityError unless the method is that of bytes as they are, and as many are `stored` as there must be."""
    if method != METHOD_RAW:
        raise IntegrityError(f"compression method {method} is not of this format version")
    if stored != length:
        raise IntegrityError(f"{stored} bytes instead of {length}")


def decompress_into(stored: memoryview, out: memoryview) -> None:
    """Fill `out` with what the zstd frame `stored` holds; IntegrityError as from `decode`. Frees the GIL."""
    try:
        _check_content_size(stored, len(out))
        with _decompressor().stream_reader(stored) as reader:
            found = reader.readinto(out)
    except zstandard.ZstdError as error:
        raise IntegrityError(f"not a whole zstd frame: {error}") from error
    if found != len(out):
        raise IntegrityError(f"not a whole zstd frame: it gives {found} bytes instead of {len(out)}")


def _decompress(stored: bytes, length: int) -> bytes:
    try:
        _check_content_size(stored, length)
        return _decompressor().decompress(stored)
    except zstandard.ZstdError as error:
        raise IntegrityError(f"not a whole zstd frame: {error}") from error


def _check_content_size(stored: bytes | memoryview, length: int) -> None:
    """Before anything of that size is allocated or written."""
    if zstandard.frame_content_size(stored) != length:
        raise IntegrityError(f"the zstd frame does not hold {length} bytes")


def _compressor(level: int) -> zstandard.ZstdCompressor:
    made: dict[int, zstandard.ZstdCompressor] | None = getattr(_local, "compressors", None)
    if made is None:
        made = _local.compressors = {}
    if level not in made:
        made[level] = (
            zstandard.ZstdCompressor(compression_params=_AUTO_PARAMETERS)
            if level == AUTO
            else zstandard.ZstdCompressor(level=level)
        )
    return made[level]


def _decompressor() -> zstandard.ZstdDecompressor:
    made: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if made is None:
        made = _local.decompressor = zstandard.ZstdDecompressor()
    return made
