"""A world whose repository the command line can open, too, and a server for one of its points."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.restore.world import Key, World
from vmcellar.repository.points import RestorePoint
from vmcellar.restore.serve import Address, Opening, Server


def config_of(world: World) -> Path:
    """A configuration file for the world's repository."""
    folder = world.settings.hot.parent
    (folder / "pass").write_bytes(Key().read() + b"\n")
    config = folder / "vmcellar.yaml"
    hot = f"{{storage: {world.settings.hot}, restores: 1GiB/s}}"
    config.write_text(f"tiers: {{hot: {hot}}}\nkey: {{file: pass}}\nstate: {world.settings.state}\n")
    return config


@contextmanager
def serving(world: World, point: RestorePoint, socket: Path) -> Iterator[dict[str, str]]:
    """The URIs of the point's disks while they are served."""
    opening = Opening(config_of(world))
    with Server(world.repository, opening, point, point.disks, Address(socket)) as server:
        yield server.uris()
