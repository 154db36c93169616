"""Restore points: one VM at one instant, as strict JSON, signed and sealed (docs/repository-format.md, section 9).

Sizes are bytes, times are seconds; ids are lower-case hex.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import secrets
import struct
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from vmcellar.errors import IntegrityError, PermanentError, UsageError
from vmcellar.repository import envelope, layout
from vmcellar.repository.records import Instant

if TYPE_CHECKING:
    from vmcellar.crypto.base import Keyring

_STRICT = ConfigDict(extra="forbid", strict=True)
STAMP = len("YYYYMMDDTHHMMSSZ")
"""How much of a point's id is its time."""
_POINT_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")

Size = Annotated[int, Field(ge=0, lt=1 << 63)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
PointId = Annotated[str, Field(pattern=r"^\d{8}T\d{6}Z-[0-9a-f]{8}$")]


@checked(frozen=True, slots=True, config=_STRICT)
class DiskRecord:
    """One disk of a point. `root` and `level` are its map's; `reason` says why all of it was read, empty if not.

    `bytes_read` is what the source gave; of it `bytes_zero` was zero, `bytes_known` the repository had, `bytes_new` is
    new and took `bytes_stored` in packs. `bytes_changed` is what the point records as changed, with holes.
    `bytes_known` came as `chunks_known`; `segments` is what the reading was divided into, `entropy` the bits per byte
    of what was new (of samples; None if nothing was), `tier` where the packs were placed then.
    """

    target: str
    size: Size
    root: Digest
    level: Annotated[int, Field(ge=0, le=8)]
    format: str
    identity: str
    serial: str = ""
    image: str = ""
    reason: str = ""
    bytes_read: Size = 0
    bytes_zero: Size = 0
    bytes_changed: Size = 0
    bytes_known: Size = 0
    bytes_new: Size = 0
    bytes_stored: Size = 0
    chunks_known: Size = 0
    segments: Size = 0
    entropy: Annotated[float, Field(ge=0, le=8)] | None = None
    tier: str = ""


@checked(frozen=True, slots=True, config=_STRICT)
class Artifact:
    """What a restore needs beside the disks (domain XML, NVRAM, TPM state, kernel), as chunks in order."""

    name: str
    size: Size
    chunks: tuple[Digest, ...]


@checked(frozen=True, slots=True, config=_STRICT)
class UncoveredDisk:
    """A disk that this point does not hold, and why; `expected` when that is no loss."""

    target: str
    reason: str
    expected: bool


@checked(frozen=True, slots=True, config=_STRICT)
class RestorePoint:
    """One VM at one instant. `time` is that instant (seconds since the epoch).

    `parent` is only a record of what the point was incremental to: restoring never needs it. `artifacts`, `repository`
    and `metadata_packs` (the packs that its commit added, by hex id) are filled in by `Repository.commit`.
    `seconds` are of work per stage, `run_seconds` from the instant to the commit.
    """

    id: PointId
    vm: str
    vm_uuid: str
    time: Instant
    kind: Literal["full", "incremental"]
    reason: str
    parent: PointId | None
    consistency: Literal["quiesced", "crash"]
    verified: bool
    checkpoint: str
    checkpoint_xml: str
    disks: tuple[DiskRecord, ...]
    repository: str = ""
    consistency_reason: str = ""
    artifacts: tuple[Artifact, ...] = ()
    uncovered: tuple[UncoveredDisk, ...] = ()
    warnings: tuple[str, ...] = ()
    bytes_read: Size = 0
    bytes_changed: Size = 0
    bytes_stored: Size = 0
    bytes_zero: Size = 0
    bytes_known: Size = 0
    freeze_seconds: float = 0.0
    held_seconds: float = 0.0
    seconds: dict[str, float] = Field(default_factory=dict)
    run_seconds: float = 0.0
    metadata_packs: tuple[Name, ...] = ()
    run_id: str = ""
    job: str = ""
    tool: str = ""

    @property
    def when(self) -> datetime:
        """The instant, in UTC."""
        return datetime.fromtimestamp(self.time, UTC)

    def disk(self, target: str) -> DiskRecord:
        """The disk with this target; PermanentError that lists the disks when there is none."""
        for disk in self.disks:
            if disk.target == target:
                return disk
        names = ", ".join(disk.target for disk in self.disks) or "none"
        raise PermanentError(f"{self.vm}, point {self.id}: no disk {target}", hint=f"its disks are: {names}")

    def artifact(self, name: str) -> Artifact | None:
        """The artifact with this name, if the point has it."""
        return next((artifact for artifact in self.artifacts if artifact.name == name), None)


def new_point_id(time: float, run_id: str = "") -> str:
    """An id for a point at this instant; ids sort by time. The same for the same run, else a fresh one."""
    digits = hashlib.sha256(run_id.encode()).hexdigest()[:8] if run_id else secrets.token_hex(4)
    return f"{datetime.fromtimestamp(time, UTC):%Y%m%dT%H%M%SZ}-{digits}"


def same_backup(one: RestorePoint, other: RestorePoint) -> bool:
    """Whether two points say the same of a VM at an instant, however their commits went."""
    return _without_commit(one) == _without_commit(other)


def _without_commit(point: RestorePoint) -> RestorePoint:
    return replace(point, metadata_packs=(), seconds={}, run_seconds=0.0, tool="")


@cache
def _adapter() -> TypeAdapter[RestorePoint]:
    return TypeAdapter(RestorePoint)


def encode(keyring: Keyring, repository_id: bytes, point: RestorePoint) -> bytes:
    """The object's bytes: signed for this repository and this id, then sealed."""
    text = _adapter().dump_json(point)
    signature = keyring.sign(_signed(repository_id, point.id, text))
    plain = struct.pack("<H", len(signature)) + signature + text
    return envelope.wrap(keyring, layout.POINT_MAGIC, layout.POINT_SEAL, point.id.encode(), plain)


def decode(
    keyring: Keyring, repository_id: bytes, point_id: str, data: bytes, *, signature_passed: bool = False
) -> RestorePoint:
    """The point; IntegrityError that names it when it is damaged, forged, or another point's or repository's.

    With `signature_passed` these very bytes are known to have passed (vmcellar/repository/points_cache.py).
    """
    try:
        plain = envelope.unwrap(keyring, layout.POINT_MAGIC, layout.POINT_SEAL, point_id.encode(), data)
        return _parse(keyring, repository_id, point_id, plain, signature_passed)
    except IntegrityError as error:
        raise IntegrityError(
            f"restore point {point_id}: {error.message}",
            hint=error.hint or "other points do not depend on it; type `vmcellar verify --all` to check them",
        ) from error


def _parse(keyring: Keyring, repository_id: bytes, point_id: str, plain: bytes, signature_passed: bool) -> RestorePoint:
    length = int.from_bytes(plain[:2], "little")
    signature, text = plain[2 : 2 + length], plain[2 + length :]
    if not signature_passed:
        keyring.check(_signed(repository_id, point_id, text), signature)
    try:
        point = _adapter().validate_json(text)
    except ValidationError as error:
        raise IntegrityError(f"its JSON is not of this format: {error.errors()[0]['msg']}") from error
    if point.id != point_id or point.repository != repository_id.hex():
        raise IntegrityError("it is the record of another point or repository")
    return point


def _signed(repository_id: bytes, point_id: str, text: bytes) -> bytes:
    return layout.POINT_SIGNED + repository_id + point_id.encode() + b"\n" + text


def is_point_id(text: str) -> bool:
    """Whether this is a whole point id."""
    return _POINT_ID.fullmatch(text) is not None


def unknown_vm(vm: str, known: Iterable[str]) -> PermanentError:
    """The error for a VM of which there is no point; `known` are those that have some."""
    near = difflib.get_close_matches(vm, sorted(known), n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    return PermanentError(f"{vm} has no restore point", hint=f"{hint}`vmcellar list` shows what there is")


def choose(points: Iterable[RestorePoint], name: str) -> RestorePoint:
    """The point that `VM@latest`, an id or a unique prefix of one names; UsageError when none or several."""
    every = list(points)
    vm, at, which = name.rpartition("@")
    if at and which == "latest":
        own = [point for point in every if point.vm == vm]
        if own:
            return max(own, key=lambda point: (point.time, point.id))
        raise unknown_vm(vm, {point.vm for point in every})
    found = [point for point in every if point.id.startswith(name)] if name else []
    if len(found) == 1:
        return found[0]
    if not found:
        raise PermanentError(f"no restore point {name or '(empty)'}", hint="type `vmcellar list` to see what there is")
    some = ", ".join(point.id for point in found[:4])
    raise UsageError(f"{name} names {len(found)} restore points: {some}", hint="type more characters of the id")
