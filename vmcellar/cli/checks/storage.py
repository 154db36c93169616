"""The passphrase and the tier: readable, writable, and a repository in it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from vmcellar.cli.checks.finding import Finding, failed
from vmcellar.cli.checks.host import free_bytes
from vmcellar.cli.render.text import size_text
from vmcellar.config.model import Config
from vmcellar.errors import VmcellarError
from vmcellar.tiers.device import device_of
from vmcellar.tiers.registry import open_tier

TIER_LOW = 5 << 30
_PROBE = ".vmcellar-doctor-probe"


def check_storage(config: Config) -> Iterator[Finding]:
    """The key, the hot tier's folder, and the repository itself: the last is opened for real."""
    yield _key(config)
    try:
        settings = config.hot_tier()
    except VmcellarError as error:
        yield failed("tier hot", error)
        return
    tier = _tier(settings.directory) if settings.kind == "local" else _remote(config)
    yield tier
    if tier.status != "failed":
        yield _repository(config)


def _key(config: Config) -> Finding:
    if config.key is None:
        return Finding("key", "failed", "key: is not set", "add `key:` with `file: FILE` to the configuration")
    try:
        config.key.read()
    except VmcellarError as error:
        return failed("key", error)
    if config.key.exposed():
        return Finding("key", "warning", f"{config.key.describe()}: others may read it", f"chmod 600 {config.key.file}")
    return Finding("key", "ok", config.key.describe())


def _tier(folder: Path) -> Finding:
    if not folder.is_dir():
        return Finding(
            "tier hot", "failed", f"{folder}: no such folder", f"mount it, or vmcellar init --tier hot={folder}"
        )
    try:
        _write_probe(folder / _PROBE)
    except OSError as error:
        remedy = "make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "run as its owner (usually root)"
        return Finding("tier hot", "failed", f"{folder}: cannot write: {error.strerror}", remedy)
    free = free_bytes(folder)
    detail = f"{folder}, {device_of(folder)}, {size_text(free)} free"
    if free < TIER_LOW:
        return Finding("tier hot", "warning", detail, "make room: prune old points, or grow the file system")
    return Finding("tier hot", "ok", detail)


def _remote(config: Config) -> Finding:
    """A probe is written, read back and deleted: that needs the place, the keys and the rights that backups need."""
    try:
        tier = open_tier("hot", config.hot_tier(), config.state)
        probe = f"probe/{uuid4().hex}"
        tier.put(probe, probe.encode())
        if tier.get(probe) != probe.encode():
            return Finding("tier hot", "failed", f"{tier!r}: gave other bytes than were put", "look at the server")
        tier.delete(probe)
        free = tier.free_bytes()
        detail = tier.describe() if free is None else f"{tier.describe()}, {size_text(free)} free"
    except (VmcellarError, OSError) as error:
        return failed("tier hot", error)
    if free is not None and free < TIER_LOW:
        return Finding("tier hot", "warning", detail, "make room: prune old points, or grow the pool or its quota")
    return Finding("tier hot", "ok", detail)


def _write_probe(path: Path) -> None:
    with path.open("wb") as probe:
        probe.write(b"probe")
        probe.flush()
        os.fsync(probe.fileno())
    path.unlink()


def _repository(config: Config) -> Finding:
    from vmcellar.repository.repository import Repository

    try:
        points = len(Repository.open(config).points())
    except VmcellarError as error:
        return failed("repository", error)
    return Finding("repository", "ok", f"opens with the key; {points} restore points")
