"""`vmcellar capacity`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from vmcellar.cli.commands.catalog import open_catalog
from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import PANEL_LOOK, ConfigOption, JsonOption

if TYPE_CHECKING:
    from vmcellar.analysis.capacity import TierUse
    from vmcellar.repository.repository import Repository


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel=PANEL_LOOK)(capacity)


def capacity(ctx: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show how full each tier is, what is added to it each day, and when it will be full.

    Growth is forecast from the history of backups as if nothing that is stored went again: prune and gc make it later.
    """
    from vmcellar.analysis.capacity import capacity as outlook
    from vmcellar.analysis.history import history
    from vmcellar.analysis.quality import quarantine
    from vmcellar.cli.render.catalog import capacity_json, capacity_table

    repository, catalog = open_catalog(ctx, config)
    good, bad = quarantine(history(catalog))
    tiers = outlook(good, tiers_now(repository), repository.clock())
    if as_json:
        print_json(capacity_json(tiers))
        return
    console().print(capacity_table(tiers))
    if len(bad):
        note(f"{len(bad)} rows of the history were not used; `vmcellar catalog show` says why")


def tiers_now(repository: Repository) -> list[TierUse]:
    """The bytes of packs on each tier, by the index, and what the tier has left."""
    from vmcellar.analysis.capacity import TierUse

    used = sum(pack.size for pack in repository.index.packs())
    return [TierUse(repository.tier.name, used, repository.tier.free_bytes())]
