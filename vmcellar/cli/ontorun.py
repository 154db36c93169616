"""What `restore --onto` does: name the disks, ask, overwrite, tell."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vmcellar.cli.bars import progress_bars
from vmcellar.cli.leftout import tell_left_out
from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import open_repository, read_config
from vmcellar.cli.signals import cancel_on_signals
from vmcellar.errors import UsageError

if TYPE_CHECKING:
    from vmcellar.repository.points import RestorePoint
    from vmcellar.restore.targets import ImageFormat


@dataclass(frozen=True, slots=True)
class Reach:
    """The options that say how the repository is opened and how the user is spoken to."""

    config: Path | None
    identity: Path | None
    as_json: bool
    yes: bool


def overwrite(ctx: typer.Context, name: str, onto: list[str], image_format: ImageFormat | None, reach: Reach) -> None:
    """Make the disks that `onto` names equal to those of the point `name`."""
    from vmcellar.cli.render.ontos import onto_json, onto_text
    from vmcellar.restore.destinations import find_destination
    from vmcellar.restore.in_use import machines_at
    from vmcellar.restore.onto import restore_onto
    from vmcellar.restore.volumes import LibvirtVolumes

    if not reach.yes and not sys.stdin.isatty():
        raise UsageError("--onto overwrites disks, and nobody can be asked here", hint="give --yes to do it unasked")
    config = read_config(ctx, reach.config)
    repository = open_repository(ctx, reach.config, reach.identity)
    point = repository.point(name)
    tell_left_out(point)
    volumes = LibvirtVolumes(config.libvirt.uri)
    words = by_target(point, onto)
    if not reach.yes:
        _ask(point, words)
    machines = machines_at(config.libvirt.uri)
    pairs = {
        target: find_destination(disk, point.disk(target).size, image_format, volumes) for target, disk in words.items()
    }
    with cancel_on_signals() as cancel, progress_bars() as progress:
        report = restore_onto(repository, point, pairs, config.state, machines, progress, cancel)
    if reach.as_json:
        print_json(onto_json(report))
    else:
        console().print(onto_text(report))


def by_target(point: RestorePoint, onto: list[str]) -> dict[str, str]:
    """The words of each disk by target. A target need not be named where the point has one disk only."""
    targets = [disk.target for disk in point.disks]
    found: dict[str, str] = {}
    for words in onto:
        target, equals, disk = words.partition("=")
        if not equals or target not in targets:
            if len(targets) != 1 or (equals and "/" not in target):
                raise UsageError(
                    f"--onto {words}: which disk of {point.vm}? The point has {', '.join(targets)}",
                    hint=f"for example --onto {targets[0]}={disk or words}",
                )
            target, disk = targets[0], words
        if target in found:
            raise UsageError(f"--onto was given twice for disk {target}", hint="name one disk for each")
        found[target] = disk
    return found


def _ask(point: RestorePoint, words: dict[str, str]) -> None:
    """UsageError unless the user types the name of each disk that will be overwritten.

    Asked before the disks are looked up, since a volume or RBD image that is missing is made then.
    """
    for target, disk in words.items():
        note(f"{disk} will be made equal to disk {target} of {point.vm}, point {point.id}")
        typed = typer.prompt("Type its name to overwrite it", err=True)
        if typed != disk:
            raise UsageError(f"{typed!r} is not {disk!r}: nothing was written")
