"""One entry of `backups:`: which VMs, when, how, and how long their points are kept."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    field_serializer,
    field_validator,
    model_validator,
)

from vmcellar.config.bandwidth import Bandwidth
from vmcellar.config.drill import Drill
from vmcellar.config.hooks import Hook
from vmcellar.config.onanomaly import OnAnomaly
from vmcellar.config.problems import wrong_at
from vmcellar.config.schedules import Schedule
from vmcellar.config.section import Section
from vmcellar.config.units import DailyWindow, Duration, as_written, minutes_of_day, parse_rate

TIERS = ("hot", "warm", "cold")
ZSTD_LEVELS = range(1, 20)

_CEPH = re.compile(r"ceph::(?P<place>[^/\s]+(?:/\S+)?)")
_S3 = re.compile(r"s3://(?P<place>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](?:/\S*)?)")
TAG_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
TAG_WORDS = "letters, digits, dot, dash, underscore"
_DISK = re.compile(r"disk:(?:(?P<vm>[^/\s]+)/)?(?P<target>[^/\s]+)")
_PATH = re.compile(r"path:(?P<path>(?:/(?!\.{1,2}(?:/|$))[^/\0-\x1f]+)+)")


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a job's packs go: kind `tier` (a name of `tiers:`), `ceph` (pool/namespace), `s3` (bucket/prefix) or
    `local` (a directory).
    """

    kind: Literal["tier", "ceph", "s3", "local"]
    place: str

    def __str__(self) -> str:
        """As the configuration has it."""
        scheme = {"ceph": "ceph::", "s3": "s3://"}.get(self.kind, "")
        return f"{scheme}{self.place}"


def parse_storage(value: object) -> Storage:
    """`hot`, `/srv/backups`, `ceph::pool/prefix` or `s3://bucket/prefix`; ValueError says what is accepted."""
    if isinstance(value, Storage):
        return value
    text = str(value).strip()
    if text in TIERS:
        return Storage("tier", text)
    if match := _CEPH.fullmatch(text):
        return Storage("ceph", match["place"])
    if match := _S3.fullmatch(text):
        return Storage("s3", match["place"])
    if text.startswith("/"):
        return Storage("local", text)
    raise ValueError("storage is a tier's name (hot, warm, cold), a directory, ceph::pool/prefix or s3://bucket/prefix")


def parse_compression(value: object) -> str:
    """`none`, `zstd`, `zstd:auto` or `zstd:LEVEL`; always given back as `none`, `zstd:auto` or `zstd:LEVEL`."""
    text = str(value).strip().lower()
    if text in ("none", "zstd:auto"):
        return text
    if text == "zstd":
        return "zstd:auto"
    level = text.removeprefix("zstd:")
    if text.startswith("zstd:") and level.isdigit() and int(level) in ZSTD_LEVELS:
        return f"zstd:{int(level)}"
    raise ValueError("compression is none, zstd:auto, or zstd with a level of 1 to 19, as in zstd:3")


def parse_domains(value: object) -> object:
    """The word `all` is every VM; anything else is left to be checked as a list."""
    return ("*",) if value == "all" else value


def parse_after_window(value: object) -> object:
    """`run`, `stop`, or a rate in bytes per second."""
    if value in ("run", "stop"):
        return value
    try:
        return parse_rate(value)
    except ValueError:
        raise ValueError("after_window is run, stop, or a rate at which the rest is read, as in 20MiB/s") from None


class KeepByAge(Section):
    """Retention by generations (grandfather, father, son): how many points of each age are kept."""

    last: int = Field(default=0, ge=0, description="the newest points, whatever their age")
    hourly: int = Field(default=0, ge=0)
    daily: int = Field(default=0, ge=0)
    weekly: int = Field(default=0, ge=0)
    monthly: int = Field(default=0, ge=0)
    yearly: int = Field(default=0, ge=0)


def _retention_kind(value: Any) -> str:
    return "generations" if isinstance(value, dict | KeepByAge) else "time"


Retention = Annotated[
    Annotated[KeepByAge, Tag("generations")] | Annotated[Duration, Tag("time")],
    Discriminator(_retention_kind),
]

_TEXT = {"type": "string"}


class BackupJob(Section):
    """A named job: `vmcellar backup --job NAME` runs it now, its schedule runs it later."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="letters, digits, dot, dash, underscore")
    schedule: Schedule | None = Field(
        default=None, description='a cron line in local time, as in "0 2 * * *", or a section; none: by hand only'
    )
    spread: Duration | None = Field(
        default=None, description="scheduled VMs begin at a time of their own within this, not all at once"
    )
    storage: Annotated[
        Storage, BeforeValidator(parse_storage), as_written(""), WithJsonSchema({**_TEXT, "examples": ["hot"]})
    ] = Storage("tier", "hot")
    domains: Annotated[
        tuple[str, ...],
        BeforeValidator(parse_domains),
        WithJsonSchema({"anyOf": [{"const": "all"}, {"type": "array", "items": _TEXT, "minItems": 1}]}),
    ] = Field(
        default=("*",),
        min_length=1,
        description="all, or a list of names, globs (web-*) and tags (tag:prod); !NAME, !GLOB, !tag:NAME leave out",
    )
    mode: Literal["auto", "full", "incremental", "differential"] = Field(
        default="auto", description="read what changed since the last point, everything, or what changed since a full"
    )
    retention: Retention | None = Field(
        default=None, description="a time (30d), or generations ({daily: 7, weekly: 4})"
    )
    compression: Annotated[
        str, BeforeValidator(parse_compression), WithJsonSchema({**_TEXT, "examples": ["zstd:auto", "zstd:3"]})
    ] = "zstd:auto"
    chunks: Literal["grid", "content"] = Field(
        default="grid",
        description="content: cut where the content says so, which systems installed apart share more of",
    )
    encryption: Literal["AES-256"] = Field(default="AES-256", description="always on; the key is named under key:")
    exclude: tuple[str, ...] = Field(
        default=(),
        description="left out on purpose: disks (disk:vdb, disk:VM/vdb), files of the guest (path:/var/log); "
        "a bare /path is a note",
    )
    when_off: Literal["skip", "start-paused"] = Field(
        default="skip", description="a VM that is off: left alone, or started with its CPUs stopped while it is read"
    )
    window: DailyWindow | None = Field(default=None, description="scheduled backups begin only inside it")
    after_window: Annotated[
        Literal["run", "stop"] | int,
        BeforeValidator(parse_after_window),
        WithJsonSchema({**_TEXT, "examples": ["run", "stop", "20MiB/s"]}),
    ] = Field(default="run", description="what still reads when the window ends: runs on, stops, or goes on at a rate")
    bandwidth: Bandwidth | None = Field(
        default=None, description="the most that the job reads from its VMs per second, all of them together"
    )
    rpo: Duration | None = Field(default=None, description="alarm when the newest verified point is older")
    rto: Duration | None = Field(default=None, description="alarm when a drill takes longer")
    breach_cost: float | None = Field(
        default=None, gt=0, description="what being over the rpo once costs, in the currency of the tiers' prices"
    )
    importance: int = Field(default=1, ge=1, le=10, description="10: its points are proven ten times as often")
    drill: Drill = Field(default=Drill(), description="what a drill of its points waits for and checks")
    hooks: tuple[Hook, ...] = Field(default=(), description="commands around the backup of each of its VMs")
    on_anomaly: OnAnomaly = Field(default=OnAnomaly(), description="what follows when its backups look strange")
    tiers: tuple[Literal["hot", "warm", "cold"], ...] = Field(default=("hot",), min_length=1)

    @field_validator("exclude")
    @classmethod
    def _exclude_is_understood(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if entry.startswith("path:") and not _PATH.fullmatch(entry):
                raise ValueError(f'"{entry}": a path is whole and plain, as in path:/var/log, and is not / itself')
            if not entry.startswith(("/", "path:")) and not _DISK.fullmatch(entry):
                raise ValueError(
                    f'"{entry}" is neither a disk (disk:vdb, disk:VM/vdb) nor a path in the guest (path:/var/log)'
                )
        return value

    @field_validator("domains")
    @classmethod
    def _something_is_wanted(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            tag = entry.removeprefix("!").partition("tag:")
            if tag[1] and not tag[0] and not TAG_NAME.fullmatch(tag[2]):
                raise ValueError(f'"{entry}": a tag is {TAG_WORDS}, as in tag:prod; it knows no globs')
        if all(entry.startswith("!") for entry in value):
            raise ValueError(f'only leaves VMs out; name those that are wanted, too, as in ["*", "{value[0]}"]')
        return value

    @model_validator(mode="after")
    def _a_window_ends(self) -> Self:
        if self.window is None and self.after_window != "run":
            raise ValueError("after_window needs a window: say when it ends, as in window: 22:00-06:00")
        cron = self.schedule.cron if self.schedule and not self.schedule.timezone else None
        if self.window and cron and not any(self.window.holds(minute) for minute in minutes_of_day(cron)):
            raise wrong_at(("window",), f"no run would begin: none of schedule: {cron} is due in it; widen one of them")
        return self

    @field_serializer("after_window")
    def _as_written(self, value: Literal["run", "stop"] | int) -> str:
        return value if isinstance(value, str) else f"{value}B/s"

    def excluded_disks(self, vm: str) -> tuple[str, ...]:
        """The targets that this job leaves out of `vm` on purpose, so that its runs may be green without them."""
        matches = (_DISK.fullmatch(entry) for entry in self.exclude)
        return tuple(match["target"] for match in matches if match and match["vm"] in (None, vm))

    def left_out_paths(self) -> tuple[str, ...]:
        """The paths of the guest whose files' content is left out (`path:/var/log`), each once, sorted."""
        matches = (_PATH.fullmatch(entry) for entry in self.exclude)
        return tuple(sorted({match["path"] for match in matches if match}))

    def excluded_paths(self) -> tuple[str, ...]:
        """Bare guest paths under `exclude:`: notes, that leave nothing out."""
        return tuple(entry for entry in self.exclude if entry.startswith("/"))

    @property
    def by_tag(self) -> bool:
        """Whether the tags of VMs matter to `domains:`."""
        return any(entry.removeprefix("!").startswith("tag:") for entry in self.domains)

    def selects_by_name(self, vm: str) -> bool | None:
        """Whether `vm` belongs to this job as its name alone tells; None when that depends on tags.

        For points whose VM may be gone: nobody can ask for its tags any more.
        """
        left_out, wanted = self._entries()
        if _matches(left_out, vm, frozenset()):
            return False
        named = _matches(wanted, vm, frozenset())
        deciding = left_out if named else wanted
        return None if any(entry.startswith("tag:") for entry in deciding) else named

    def leaves_out(self, vm: str) -> bool:
        """Whether an entry with `!` leaves `vm` out by its name: somebody meant it."""
        return _matches(self._entries()[0], vm, frozenset())

    def selects(self, vm: str, tags: frozenset[str] = frozenset()) -> bool:
        """Whether `vm`, which carries `tags`, belongs to this job; globs as in fnmatch(3).

        An entry that begins with `!` leaves out what it matches, wherever it stands.
        """
        left_out, wanted = self._entries()
        return _matches(wanted, vm, tags) and not _matches(left_out, vm, tags)

    def _entries(self) -> tuple[list[str], list[str]]:
        """What `domains:` leaves out, without the `!`, and what it wants."""
        left_out = [entry[1:] for entry in self.domains if entry.startswith("!")]
        return left_out, [entry for entry in self.domains if not entry.startswith("!")]


def _matches(entries: Sequence[str], vm: str, tags: frozenset[str]) -> bool:
    return any(
        entry.removeprefix("tag:") in tags if entry.startswith("tag:") else fnmatch.fnmatchcase(vm, entry)
        for entry in entries
    )
