"""The passphrase and the tier: readable, writable, and a repository in it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

from vmcellar.cli.checks.finding import Finding, failed
from vmcellar.cli.checks.host import free_bytes
from vmcellar.cli.checks.lock import check_lock
from vmcellar.cli.render.text import size_text
from vmcellar.config.model import Config
from vmcellar.errors import VmcellarError
from vmcellar.tiers.base import Tier
from vmcellar.tiers.device import device_of
from vmcellar.tiers.mark import CONFIG_KEY, check_mark
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
        yield from (_other(config, name) for name in config.other_tiers())
        for name, each in {"hot": settings, **config.other_tiers()}.items():
            if each.lock is not None:
                yield check_lock(f"lock of {name}", partial(open_tier, name, each, config.state))
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
            "tier hot",
            "failed",
            f"{folder}: {'this is a file' if folder.exists() else 'no such folder'}",
            "mount its file system (`findmnt` shows what is mounted), or correct tiers.hot",
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
    return _probed("hot", lambda: open_tier("hot", config.hot_tier(), config.state))


def _other(config: Config, name: str) -> Finding:
    """A tier behind hot: also whether it is this repository's, and mounted."""

    def opened() -> Tier:
        tier = open_tier(name, config.other_tiers()[name], config.state)
        hot = open_tier("hot", config.hot_tier(), config.state)
        if hot.exists(CONFIG_KEY):
            check_mark(hot, tier)
        return tier

    return _probed(name, opened)


def _probed(name: str, opened: Callable[[], Tier]) -> Finding:
    """A probe is written, read back and deleted: that needs the place, the keys and the rights that backups need."""
    what = f"tier {name}"
    try:
        tier = opened()
        probe = f"probe/{uuid4().hex}"
        tier.put(probe, probe.encode())
        if tier.get(probe) != probe.encode():
            return Finding(what, "failed", f"{tier!r}: gave other bytes than were put", "look at the server")
        tier.delete(probe)
        free = tier.free_bytes()
        detail = tier.describe() if free is None else f"{tier.describe()}, {size_text(free)} free"
    except (VmcellarError, OSError) as error:
        return failed(what, error)
    if free is not None and free < TIER_LOW:
        return Finding(what, "warning", detail, "make room: prune old points, or grow the place or its quota")
    return Finding(what, "ok", detail)


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
