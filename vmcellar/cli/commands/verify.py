"""`vmcellar verify [POINT|--all] [--deep]`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from vmcellar.cli.bars import progress_bars
from vmcellar.cli.output import console, print_json
from vmcellar.cli.session import PANEL_LOOK, ConfigOption, IdentityOption, JsonOption, open_repository
from vmcellar.cli.signals import cancel_on_signals
from vmcellar.errors import UsageError

if TYPE_CHECKING:
    from vmcellar.repository.scrub import ScrubReport


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel=PANEL_LOOK)(verify)


def verify(
    ctx: typer.Context,
    point: Annotated[
        str | None, typer.Argument(metavar="[POINT]", help="A point's id, a unique prefix of it, or VM@latest.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Check every point and all that is stored.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte back, decrypt and compare it.")] = False,
    identity: IdentityOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check what is stored, and name the points and disk ranges that damage touches. Exit 1 when there is any."""
    if (point is None) != every:
        raise UsageError("name one point, or give --all", hint="such as: vmcellar verify web1@latest --deep")
    with cancel_on_signals() as cancel, progress_bars() as progress:
        from vmcellar.repository import scrub

        repository = open_repository(ctx, config, identity)
        if point is None:
            report = scrub.verify_all(repository, deep=deep, progress=progress, cancel=cancel)
        else:
            found = repository.point(point)
            report = scrub.verify_point(repository, found, deep=deep, progress=progress, cancel=cancel)
    _print(report, deep, as_json)
    if not report.ok:
        raise typer.Exit(1)


def _print(report: ScrubReport, deep: bool, as_json: bool) -> None:
    if as_json:
        print_json({**asdict(report), "ok": report.ok, "deep": deep})
        return
    from vmcellar.cli.render.scrub import scrub_text

    console().print(scrub_text(report, deep))
