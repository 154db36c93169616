"""`vmcellar slo`: every VM against its policy."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import PANEL_LOOK, ConfigOption, JsonOption, open_repository, read_config
from vmcellar.errors import VmcellarError

if TYPE_CHECKING:
    from vmcellar.config.model import Config


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel=PANEL_LOOK)(slo)


def slo(ctx: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show per VM the age of its newest verified point, its measured and predicted restore time and its last drill.

    Held against `rpo:` and `rto:` of its job; exit 1 when a VM is out of policy.
    """
    from vmcellar.quality.slo import levels

    repository, settings = open_repository(ctx, config), read_config(ctx, config)
    found = levels(repository, settings.backups, repository.clock(), _tried(settings, repository.id))
    if as_json:
        print_json([{**asdict(level), "ok": not level.problems} for level in found])
    elif found:
        from vmcellar.cli.render.slo import levels_table

        console().print(levels_table(found))
    else:
        note("no restore points yet; `vmcellar backup VM` makes one")
    if any(level.problems for level in found):
        raise typer.Exit(1)


def _tried(settings: Config, repository: bytes) -> set[str]:
    """The VMs that were ever tried to back up, as the catalog knows; none, and a note, where it cannot be read."""
    from vmcellar.catalog.catalog import Catalog
    from vmcellar.catalog.databases import database_of

    try:
        return set() if database_of(settings).missing() else Catalog.of(settings, repository).vms()
    except VmcellarError as error:
        note(f"VMs that have no point and that no job names in full are not told of: {error.message}")
        return set()
