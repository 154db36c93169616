"""Evidence: what a verification or a drill of a restore point found, signed and sealed (docs/repository-format.md, 13).

A record is written once and never changed. Its name tells point, time, kind and verdict, so one listing says how every
point stands, and nothing has to be read for that; the sealed record must agree with its name. Evidence goes when gc
sees that its point is gone.
"""

from __future__ import annotations

import re
import secrets
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from vmcellar.errors import IntegrityError
from vmcellar.repository import envelope, layout
from vmcellar.repository.points import Digest, PointId, RestorePoint, Size
from vmcellar.repository.records import Instant

if TYPE_CHECKING:
    from vmcellar.crypto.base import Keyring
    from vmcellar.repository.repository import Repository
    from vmcellar.tiers.base import Tier

Kind = Literal["verification", "drill"]
Verdict = Literal["passed", "failed"]
Alive = Literal["", "agent", "serial", "screen"]
FileSystemState = Literal["clean", "damaged", "not checked"]

_JSON = ConfigDict(extra="forbid", strict=True, ser_json_bytes="base64", val_json_bytes="base64")
_NAME = re.compile(
    r"(?P<point>\d{8}T\d{6}Z-[0-9a-f]{8})-(?P<stamp>\d{8}T\d{6}Z)-(?P<kind>verification|drill)"
    r"-(?P<verdict>passed|failed)-[0-9a-f]{8}"
)
SCREENSHOT_MAX = 4 << 20
"""Bytes of a screenshot at most."""

Seconds = Annotated[float, Field(ge=0, lt=1e10)]


@checked(frozen=True, slots=True, config=_JSON)
class Check:
    """One thing that was looked at, in words for people. One that is not `critical` fails nothing."""

    name: str
    expected: str
    found: str
    ok: bool
    critical: bool = True


@checked(frozen=True, slots=True, config=_JSON)
class FileSystem:
    """A file system in a restored disk: `place` is "disk" or the partition's name."""

    place: str
    type: str
    state: FileSystemState
    detail: str = ""


@checked(frozen=True, slots=True, config=_JSON)
class DiskProof:
    """What became of one disk that the point should hold; sizes in bytes.

    `root` is what the point says, `root_found` the root of the map made anew from the restored bytes. `compared` bytes
    of the restored image were held against the map, `differing` of them were not equal, `lost` could not be restored.
    """

    target: str
    size: Size
    size_found: Size
    root: Digest
    root_found: str = ""
    compared: Size = 0
    differing: Size = 0
    lost: Size = 0
    file_systems: tuple[FileSystem, ...] = ()


@checked(frozen=True, slots=True, config=_JSON)
class Evidence:
    """One finding about one point. `time` is when it ended, `seconds` how long each phase took.

    `missing` are disks of the VM that the point should hold and does not. `damaged` counts objects that could not be
    read. `rpo` is the age that the point had when it was the newest verified one of its VM and was looked at, `rto`
    the seconds from the order to restore to a running, checked VM; limits are those of the policy then, None without.
    `expectations` name those that the quality suites found unmet. `screenshot` is a PNG.
    """

    point: PointId
    vm: str
    kind: Kind
    verdict: Verdict
    time: Instant
    host: str
    checks: tuple[Check, ...]
    seconds: dict[str, Seconds] = Field(default_factory=dict)
    disks: tuple[DiskProof, ...] = ()
    missing: tuple[str, ...] = ()
    damaged: Annotated[int, Field(ge=0)] = 0
    alive: Alive = ""
    rpo: Seconds | None = None
    rpo_limit: Seconds | None = None
    rto: Seconds | None = None
    rto_limit: Seconds | None = None
    expectations: tuple[str, ...] = ()
    repository: str = ""
    tool: str = ""
    screenshot: Annotated[bytes, Field(max_length=SCREENSHOT_MAX)] = b""

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that count and were not met."""
        return tuple(check for check in self.checks if check.critical and not check.ok)


@dataclass(frozen=True, slots=True)
class EvidenceName:
    """What the name of a piece of evidence tells; `stamp` is its time in UTC, to the second."""

    key: str
    point: str
    stamp: str
    kind: Kind
    verdict: Verdict

    @property
    def when(self) -> datetime:
        """The time, in UTC."""
        return datetime.strptime(self.stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a point stands: its newest evidence of each kind."""

    verification: EvidenceName | None = None
    drill: EvidenceName | None = None

    @property
    def newest(self) -> tuple[EvidenceName, ...]:
        """The newest of each kind, newest first."""
        found = [each for each in (self.verification, self.drill) if each is not None]
        return tuple(sorted(found, key=lambda each: each.stamp, reverse=True))

    @property
    def failed(self) -> bool:
        """Whether the newest evidence of either kind speaks against the point."""
        return any(each.verdict == "failed" for each in self.newest)

    @property
    def proven(self) -> bool:
        """Whether there is evidence, and none that counts speaks against the point."""
        return bool(self.newest) and not self.failed


NEVER = Standing()


@cache
def _adapter() -> TypeAdapter[Evidence]:
    return TypeAdapter(Evidence)


def new_name(evidence: Evidence) -> str:
    """A fresh name, without the prefix."""
    stamp = f"{datetime.fromtimestamp(evidence.time, UTC):%Y%m%dT%H%M%SZ}"
    return f"{evidence.point}-{stamp}-{evidence.kind}-{evidence.verdict}-{secrets.token_hex(4)}"


def parse_name(name: str) -> EvidenceName:
    """What a name tells; IntegrityError when it is none of evidence."""
    match = _NAME.fullmatch(name)
    if match is None or not name.isascii():
        raise IntegrityError(f"{layout.EVIDENCE}{name}: this is no name of evidence")
    kind: Kind = "drill" if match["kind"] == "drill" else "verification"
    verdict: Verdict = "passed" if match["verdict"] == "passed" else "failed"
    return EvidenceName(layout.EVIDENCE + name, match["point"], match["stamp"], kind, verdict)


def encode(keyring: Keyring, repository_id: bytes, name: str, evidence: Evidence) -> bytes:
    """The object's bytes: signed for this repository and this name, then sealed."""
    text = _adapter().dump_json(evidence)
    signature = keyring.sign(_signed(repository_id, name, text))
    plain = struct.pack("<H", len(signature)) + signature + text
    return envelope.wrap(keyring, layout.EVIDENCE_MAGIC, layout.EVIDENCE_SEAL, name.encode(), plain)


def decode(keyring: Keyring, repository_id: bytes, name: str, data: bytes) -> Evidence:
    """The record; IntegrityError that names it when it is damaged, forged, or not what its name says."""
    try:
        plain = envelope.unwrap(keyring, layout.EVIDENCE_MAGIC, layout.EVIDENCE_SEAL, name.encode(), data)
        length = int.from_bytes(plain[:2], "little")
        signature, text = plain[2 : 2 + length], plain[2 + length :]
        keyring.check(_signed(repository_id, name, text), signature)
        found = _adapter().validate_json(text)
        said = parse_name(name)
    except ValidationError as error:
        raise IntegrityError(
            f"{layout.EVIDENCE}{name}: its JSON is not of this format: {error.errors()[0]['msg']}"
        ) from error
    except IntegrityError as error:
        raise IntegrityError(
            f"{layout.EVIDENCE}{name}: {error.message}",
            hint="no point depends on it: verify the point again (`vmcellar prove POINT`, `vmcellar drill POINT`)",
        ) from error
    if (found.point, found.kind, found.verdict) != (said.point, said.kind, said.verdict):
        raise IntegrityError(f"{layout.EVIDENCE}{name}: its record says something else than its name")
    if found.repository != repository_id.hex():
        raise IntegrityError(f"{layout.EVIDENCE}{name}: it is of another repository")
    return found


def _signed(repository_id: bytes, name: str, text: bytes) -> bytes:
    return layout.EVIDENCE_SIGNED + repository_id + name.encode() + b"\n" + text


def write(repository: Repository, evidence: Evidence) -> EvidenceName:
    """Make evidence durable. Raises what the tier raises; a crash leaves it whole or not there.

    What is written last counts: where another host's clock is ahead and evidence about the point seems to be of a time
    to come, this one gets the second after that.
    """
    known = [each.when.timestamp() for each in names(repository.tier, evidence.point) if each.kind == evidence.kind]
    ahead = max(known, default=0.0)
    time = ahead + 1 if ahead > evidence.time else evidence.time
    whole = replace(evidence, repository=repository.id.hex(), time=time)
    name = new_name(whole)
    repository.tier.put(layout.EVIDENCE + name, encode(repository.keyring, repository.id, name, whole))
    return parse_name(name)


def read(repository: Repository, name: EvidenceName) -> Evidence:
    """One record; IntegrityError when it is damaged, NotFoundError when it went."""
    data = repository.tier.get(name.key)
    return decode(repository.keyring, repository.id, name.key.removeprefix(layout.EVIDENCE), data)


def names(tier: Tier, point: str = "") -> list[EvidenceName]:
    """All evidence, or that of one point, oldest first, by listing alone; a name that is none is left out.

    Names tell the time to the second: of one second's, what speaks against a point counts as the newest.
    """
    found = []
    for key, _ in tier.list(layout.EVIDENCE + point):
        try:
            found.append(parse_name(key.removeprefix(layout.EVIDENCE)))
        except IntegrityError:
            continue
    return sorted(found, key=lambda each: (each.stamp, each.verdict == "failed", each.key))


def standings(tier: Tier, point: str = "") -> dict[str, Standing]:
    """How every point (or one) stands that has evidence, by point id."""
    newest: dict[str, dict[str, EvidenceName]] = {}
    for each in names(tier, point):
        newest.setdefault(each.point, {})[each.kind] = each
    return {name: Standing(found.get("verification"), found.get("drill")) for name, found in newest.items()}


def judged(points: Iterable[RestorePoint], standing: Mapping[str, Standing]) -> list[RestorePoint]:
    """The same points, `verified` no more where the newest evidence speaks against one."""
    return [replace(point, verified=False) if standing.get(point.id, NEVER).failed else point for point in points]


def sound(points: Iterable[RestorePoint], standing: Mapping[str, Standing]) -> list[RestorePoint]:
    """The same points, `verified` no more where evidence speaks against one or against what it was made from: those
    that stay verified may be built on and relied on. All points of each VM must be given.
    """
    every = list(points)
    doubted = doubtful(every, standing)
    return [replace(point, verified=False) if point.id in doubted else point for point in every]


def doubtful(points: Collection[RestorePoint], standing: Mapping[str, Standing]) -> set[str]:
    """The ids of points that must not be a parent: evidence speaks against them, or against what they were made from.

    An incremental takes what did not change from its parent, so a fault is handed down until all is read anew. A kind
    "full" ends that. `points` are all those of one VM or of several.
    """
    children: dict[str, list[str]] = {}
    for point in points:
        if point.kind == "incremental" and point.parent is not None:
            children.setdefault(point.parent, []).append(point.id)
    found: set[str] = set()
    pending = [point.id for point in points if standing.get(point.id, NEVER).failed]
    while pending:  # not in the order of their times: a clock may have been set, or a VM have moved to another host's
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += children.get(name, ())
    return found
