"""`vmcellar backup VM... [--full] [--job NAME]`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from vmcellar.cli.output import console, print_json
from vmcellar.cli.session import PANEL_WORK, ConfigOption, JsonOption, config_path, unlocking

if TYPE_CHECKING:
    from vmcellar.backup.model import PointSummary


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel=PANEL_WORK)(backup)


def backup(
    ctx: typer.Context,
    vms: Annotated[list[str] | None, typer.Argument(metavar="VM...", help="VMs to back up.")] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Read every disk in full; only what is new gets stored.")
    ] = False,
    job: Annotated[str | None, typer.Option("--job", metavar="NAME", help="Run this job of the configuration.")] = None,
    start_paused: Annotated[
        bool,
        typer.Option(
            "--start-paused", help="Start a VM that is off with its CPUs stopped, read its disks, and stop it again."
        ),
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Back up VMs now: incrementally where their last verified point allows it. They must run, or be started paused.

    Exit 0 only when every disk of every VM has a verified restore point, and no hook failed.
    """
    path = config_path(ctx, config)
    unlocking(path)
    from vmcellar.cli.backuprun import run_backups

    verbose = ctx.find_root().obj.verbose > 0
    outcome = run_backups(path, vms or [], job or "", full=full, start_paused=start_paused, verbose=verbose)
    if as_json:
        print_json([asdict(point) for point in outcome.points])
    else:
        _print_points(outcome.points)
    outcome.raise_first_failure()
    if any(point.uncovered or point.hook_failures or not point.verified for point in outcome.points):
        raise typer.Exit(1)


def _print_points(points: list[PointSummary]) -> None:
    from vmcellar.cli.render.runs import summary_text

    for point in points:
        console().print(summary_text(point))
