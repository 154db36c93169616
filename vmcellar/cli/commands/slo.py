"""`vmcellar slo`: every VM against its policy."""

from __future__ import annotations

from dataclasses import asdict

import typer

from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import PANEL_LOOK, ConfigOption, JsonOption, open_repository, read_config


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel=PANEL_LOOK)(slo)


def slo(ctx: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show per VM the age of its newest verified point, its measured and predicted restore time and its last drill.

    Held against `rpo:` and `rto:` of its job; exit 1 when a VM is out of policy.
    """
    from vmcellar.quality.slo import levels

    repository = open_repository(ctx, config)
    found = levels(repository, read_config(ctx, config).backups, repository.clock())
    if as_json:
        print_json([{**asdict(level), "ok": not level.problems} for level in found])
    elif found:
        from vmcellar.cli.render.slo import levels_table

        console().print(levels_table(found))
    else:
        note("no restore points yet; `vmcellar backup VM` makes one")
    if any(level.problems for level in found):
        raise typer.Exit(1)
