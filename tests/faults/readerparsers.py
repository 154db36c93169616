"""The parsers of the stand-alone reader, behind its seals: what somebody with the keys could write is named, too."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.mutate import mutate_text
from tests.faults.parser import Parser
from vmcellar.errors import IntegrityError
from vmcellar.repository import layout

READER = Path(__file__).resolve().parents[2] / "tools" / "read_vmcellar.py"
POINT = "20270115T080000Z-f81c294b"


def _opened() -> Any:
    """The reader, for which every seal and every signature is right."""
    spec = importlib.util.spec_from_file_location("read_vmcellar_open", READER)
    assert spec is not None
    assert spec.loader is not None
    reader: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    reader.open_sealed = lambda _secret, _kind, _name, sealed: sealed
    reader.warn = lambda _text: None
    reader.Repository._check_signature = lambda *_: None
    return reader


class _Reading:
    """The ways into the reader, each with any bytes; IntegrityError for what its user is told in words."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._reader = _opened()
        self._repository = self._reader.Repository([folder], self._reader.keys_of(bytes(128)))

    def _named(self, parse: Callable[[Path], object], name: str, data: bytes) -> None:
        self._repository.places.clear()
        path = self._folder / name
        path.write_bytes(data)
        try:
            parse(path)
        except self._reader.MALFORMED as error:
            raise IntegrityError(str(error)) from error

    def part(self, data: bytes) -> None:
        """An index part."""
        self._named(self._repository._add_part, "0" * 32, data)

    def table(self, data: bytes) -> None:
        """A pack's table of contents."""
        self._named(self._repository._add_pack, "1" * 32, data)

    def record(self, data: bytes) -> None:
        """A restore point."""
        self._named(self._repository._point, POINT, data)

    def node(self, level: int, data: bytes) -> None:
        """A node of a map, and all below it."""
        self._repository.read = lambda _wanted, _what: data
        losses = self._reader.Losses({"target": "vda", "size": 1 << 50}, False)
        try:
            list(self._repository.rows(b"n" * layout.ID_BYTES, level, 0, losses))
        except self._reader.Damage as error:
            raise IntegrityError(str(error)) from error


def reader_parsers(folder: Path, index: bytes, pack: bytes, leaf: bytes, inner: bytes, point: bytes) -> list[Parser]:
    """Whole inputs are those of the other parsers, opened; `folder` is for files."""
    reading = _Reading(folder)
    return [
        Parser("reader: index part", (index,), reading.part, weight=0.2),
        Parser("reader: table", (pack,), reading.table, weight=0.2),
        Parser("reader: map leaf", (leaf,), partial(reading.node, 0)),
        Parser("reader: map inner node", (inner,), partial(reading.node, 1), whole=False),
        Parser("reader: restore point", (point,), reading.record, mutate_text, 0.2),
    ]
