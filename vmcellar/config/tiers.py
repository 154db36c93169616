"""A tier in the configuration: a storage string, or a section with that string and options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, GetJsonSchemaHandler, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic_core import CoreSchema

from vmcellar.config.bandwidth import Bandwidth
from vmcellar.config.prices import AWS_PRICES, Prices
from vmcellar.config.secrets import HostPath, SecretReference, expand
from vmcellar.config.section import Section
from vmcellar.config.units import DailyWindow, Duration, Size

_CEPH = re.compile(r"ceph::[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?")
_S3 = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._-]+)*/?")
_PREFIX = re.compile(r"(?!file::)[A-Za-z][A-Za-z0-9+.-]+:")
"""What looks like a scheme or a host. Taken for a folder's name, it would make a folder on this host, whose owner would
believe his backups to be elsewhere.
"""
_AWS = re.compile(r"\.amazonaws\.com(\.cn)?(:\d+)?/?$")
_ALWAYS = frozenset({"storage", "prices", "bandwidth", "moves", "restores"})
_OPTIONS = {
    "local": _ALWAYS | {"lock"},
    "ceph": _ALWAYS | {"staging", "timeout", "conf", "user", "keyring", "object"},
    "s3": _ALWAYS
    | {"staging", "timeout", "endpoint", "region", "profile", "access_key", "secret_key", "ca"}
    | {"storage_class", "part", "lock"},
}
_SMALLEST_PART = 5 << 20  # S3: every part but the last
_LARGEST_OBJECT = 64 << 20  # Ceph: osd_max_write_size is 90 MiB


class Lock(Section):
    """What is written cannot be deleted for a time: S3 object lock, or the immutable flag of a local file."""

    mode: Literal["governance", "compliance", "immutable"] = Field(
        description="s3: governance (who has the right may break it) or compliance (nobody); a directory: immutable"
    )
    keep: Duration | None = Field(
        default=None, ge=1, description="locked for so long, and anew while points live; default the shortest retention"
    )


class TierSettings(Section):
    """Where one tier is. Options belong to the kind of storage that the string names."""

    storage: str = Field(min_length=1, description="a directory, ceph::pool/namespace or s3://bucket/prefix")
    staging: HostPath | None = Field(
        default=None, description="ceph, s3: a local folder where packs are built; default in state:"
    )
    timeout: Duration = Field(default=60, ge=1, description="ceph, s3: seconds that one request may take")
    endpoint: str | None = Field(default=None, pattern=r"^https?://\S+$", description="s3: URL; default AWS")
    region: str | None = Field(default=None, description="s3: region; default the profile's")
    profile: str | None = Field(default=None, description="s3: a profile of ~/.aws")
    access_key: SecretReference | None = Field(default=None, description="s3: where the access key is")
    secret_key: SecretReference | None = Field(default=None, description="s3: where the secret key is")
    ca: HostPath | None = Field(default=None, description="s3: file of the authority that signed the server's name")
    storage_class: str = Field(default="", pattern=r"^[A-Z0-9_-]*$", description="s3: of packs; default the server's")
    part: Size = Field(default=16 << 20, ge=_SMALLEST_PART, description="s3: bytes per part of a large upload")
    conf: HostPath = Field(default=Path("/etc/ceph/ceph.conf"), description="ceph: the cluster's configuration")
    user: str = Field(default="client.admin", pattern=r"^client\.\S+$", description="ceph: who vmcellar is")
    keyring: HostPath | None = Field(default=None, description="ceph: file with the user's key; default conf's")
    object: Size = Field(
        default=4 << 20, ge=64 << 10, le=_LARGEST_OBJECT, description="ceph: the most bytes in one RADOS object"
    )
    lock: Lock | None = Field(default=None, description="s3, directory: what is written cannot be deleted for a time")
    bandwidth: Bandwidth | None = Field(
        default=None, description="the most that moves read from it and write to it per second, on this host"
    )
    restores: Bandwidth | None = Field(
        default=None, description="the most that restores, servers and checks of points read from it per second, here"
    )
    moves: DailyWindow | None = Field(default=None, description="moves from it and to it begin only inside this window")
    prices: Prices | None = Field(default=None, description="what it costs; default: AWS's list prices on AWS, else 0")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"storage": str(value)} if isinstance(value, str | Path) else value

    @model_validator(mode="after")
    def _is_understood(self) -> Self:
        form = {"ceph": _CEPH, "s3": _S3}.get(self.kind)
        if form is not None and form.fullmatch(self.storage) is None:
            raise ValueError(f"{self.storage}: write ceph::pool/namespace or s3://bucket/prefix, without spaces")
        if form is None and _PREFIX.match(self.storage):
            raise ValueError(
                f"{self.storage}: storage is a directory, ceph::pool/namespace or s3://bucket/prefix, in these very "
                f"letters; a directory of this name is written ./{self.storage}"
            )
        if form is None:
            expand(Path(self.storage.removeprefix("file::")))
        if strange := sorted(self.model_fields_set - _OPTIONS[self.kind]):
            raise ValueError(f"{strange[0]} is no option of {self.storage}")
        if self.lock is not None and (self.lock.mode == "immutable") != (self.kind == "local"):
            raise ValueError("lock.mode is governance or compliance on s3, immutable for a directory")
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("give both access_key and secret_key, or neither")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> Any:
        """As the file may say it: a directory as text, else the options of this kind alone."""
        if self.kind == "local" and all(getattr(self, name) is None for name in _OPTIONS["local"] - {"storage"}):
            return self.storage
        return {name: value for name, value in handler(self).items() if name in _OPTIONS[self.kind]}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string", "examples": ["/srv/vmcellar"]}, handler(schema)]}

    @property
    def kind(self) -> Literal["local", "ceph", "s3"]:
        """Which kind of storage the string names."""
        if self.storage.startswith("ceph::"):
            return "ceph"
        return "s3" if self.storage.startswith("s3://") else "local"

    @property
    def directory(self) -> Path:
        """The path of a local tier."""
        return Path(self.storage.removeprefix("file::")).expanduser()

    @property
    def price_table(self) -> Prices:
        """What it costs: what `prices:` says, and for what it leaves out AWS's list prices of the packs' class where
        the tier is AWS's, else nothing.
        """
        on_aws = self.kind == "s3" and (self.endpoint is None or _AWS.search(self.endpoint) is not None)
        table = AWS_PRICES.get(self.storage_class or "STANDARD", Prices()) if on_aws else Prices()
        if self.prices is None:
            return table
        return table.model_copy(update={name: getattr(self.prices, name) for name in self.prices.model_fields_set})

    @property
    def lock_keep(self) -> float | None:
        """For how many seconds what is written is locked; None: it is not."""
        return None if self.lock is None else self.lock.keep

    @property
    def thaws(self) -> bool:
        """Whether packs that lie there must be thawed before they can be read, as their class tells."""
        return bool(AWS_PRICES.get(self.storage_class, Prices()).retrieval)

    def within(self, folder: Path) -> TierSettings:
        """The same with every relative path taken from `folder`."""
        changed: dict[str, object] = {}
        for name in ("staging", "ca", "conf", "keyring"):
            path = getattr(self, name)
            if path is not None:
                changed[name] = folder / path
        for name in ("access_key", "secret_key"):
            secret = getattr(self, name)
            if secret is not None and secret.file is not None:
                changed[name] = secret.model_copy(update={"file": folder / secret.file})
        if self.kind == "local":
            changed["storage"] = str(folder / self.directory)
        return self.model_copy(update=changed)
