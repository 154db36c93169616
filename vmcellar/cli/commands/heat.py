"""`vmcellar heat VM [DISK]`: where a disk changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import PANEL_LOOK, ConfigOption, JsonOption, open_repository
from vmcellar.errors import IntegrityError, PermanentError

if TYPE_CHECKING:
    from vmcellar.repository.repository import Repository


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel=PANEL_LOOK)(heat)


def heat(
    ctx: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="The VM.")],
    disk: Annotated[str | None, typer.Argument(metavar="[DISK]", help="One of its disks; all of them else.")] = None,
    points: Annotated[int, typer.Option(min=2, max=10_000, help="How many of its newest points are compared.")] = 40,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="DIR", help="Draw each disk as DIR/VM-DISK.png; DIR must exist.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show where each disk of a VM changed from point to point: a heat map of time by place, from its maps alone.

    A damaged map is named, and makes the exit code 1 after all else was shown.
    """
    from vmcellar.analysis.heat import heat_map
    from vmcellar.cli.render import heat as render

    repository = open_repository(ctx, config)
    found = [
        heat_map(repository, vm, each, most_points=points) for each in ([disk] if disk else _disks(repository, vm))
    ]
    if as_json:
        print_json([render.heat_json(one) for one in found])
    for one in found:
        if not as_json:
            console().print(render.heat_table(one))
        if png is not None:
            note(f"drawn: {render.draw(one, png)}")
    damaged = [f"point {point}, disk {one.disk}: {told}" for one in found for point, told in one.damaged.items()]
    if damaged:
        raise IntegrityError("; ".join(damaged), hint="`vmcellar verify --all` tells what else is damaged")


def _disks(repository: Repository, vm: str) -> list[str]:
    """The disks of its newest point."""
    newest = repository.points_of(vm)[-1:]
    if not newest:
        raise PermanentError(f"{vm} has no restore point", hint="type `vmcellar list` to see which VMs have")
    return [each.target for each in newest[0].disks]
