"""`vmcellar list [VM]` and `vmcellar show POINT`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import PANEL_LOOK, ConfigOption, JsonOption, open_repository

PointArgument = Annotated[
    str, typer.Argument(metavar="POINT", help="A point's id, a unique prefix of it, or VM@latest.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command("list", rich_help_panel=PANEL_LOOK)(list_points)
    app.command(rich_help_panel=PANEL_LOOK)(show)


def list_points(
    ctx: typer.Context,
    vm: Annotated[str | None, typer.Argument(metavar="[VM]", help="Only the points of this VM.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List restore points, oldest first. Exit 1 when VM is given and has none."""
    from vmcellar.cli.render.evidence import standing_json
    from vmcellar.cli.render.points import MANY, point_json, points_lines, points_table
    from vmcellar.repository import evidence
    from vmcellar.repository.points import unknown_vm

    repository = open_repository(ctx, config)
    points = repository.points_of(vm) if vm is not None else repository.readable_points()
    standings = evidence.standings(repository.tier)
    points = evidence.judged(sorted(points, key=lambda point: (point.time, point.id)), standings)
    if as_json:
        print_json([{**point_json(point), "evidence": standing_json(standings.get(point.id))} for point in points])
    elif len(points) > MANY:
        sys.stdout.writelines(f"{line}\n" for line in points_lines(points))
    elif points:
        console().print(points_table(points))
    elif vm is None:
        note("no restore points yet; `vmcellar backup VM` makes one")
    if vm is not None and not points:
        raise unknown_vm(vm, {point.vm for point in repository.readable_points()})


def show(ctx: typer.Context, point: PointArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show one restore point in full: its disks, what was captured with them, and its figures."""
    from vmcellar.cli.render.evidence import last_proofs, proof_text, standing_json
    from vmcellar.cli.render.points import point_details, point_details_json
    from vmcellar.repository import evidence

    repository = open_repository(ctx, config)
    found = repository.point(point)
    standing = evidence.standings(repository.tier, found.id).get(found.id, evidence.NEVER)
    (found,) = evidence.judged([found], {found.id: standing})
    proofs = last_proofs(repository, standing)
    if as_json:
        print_json({**point_details_json(found), "evidence": standing_json(standing)})
    else:
        console().print(point_details(found))
        console().print(proof_text(proofs))
