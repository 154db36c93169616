"""`vmcellar locks`."""

from __future__ import annotations

import typer

from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import PANEL_UPKEEP, ConfigOption, JsonOption, read_config


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel=PANEL_UPKEEP)(locks)


def locks(ctx: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show which VMs are being worked on from this host, by whom and since when.

    The kernel frees a lock when its process ends, however it ends, so none can be stale.
    """
    from vmcellar.cli.hostlocks import held_locks

    held = held_locks(read_config(ctx, config).state)
    if as_json:
        print_json([lock.to_json() for lock in held])
    elif held:
        from vmcellar.cli.render.locks import locks_table

        console().print(locks_table(held))
    else:
        note("no VM is being worked on")
