"""`vmcellar capacity`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from vmcellar.cli.commands.catalog import open_catalog
from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import PANEL_LOOK, ConfigOption, JsonOption, read_config

if TYPE_CHECKING:
    from vmcellar.catalog.catalog import Catalog
    from vmcellar.repository.repository import Repository


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel=PANEL_LOOK)(capacity)


def capacity(ctx: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show how full each tier is, what is added to it each day, when it will be full, and what it will cost.

    Growth is forecast from what backups store, as if nothing went again: prune, gc and moves to other tiers make it
    later. What each tier holds now is noted in the catalog; tiers that no backup writes to are judged by such notes.
    """
    from vmcellar.analysis.capacity import capacity as outlook
    from vmcellar.analysis.capacity import tiers_now, use_rows
    from vmcellar.analysis.history import recent, tier_use
    from vmcellar.analysis.quality import quarantine
    from vmcellar.catalog.agreement import judge_segments
    from vmcellar.cli.render.catalog import capacity_json, capacity_table, costs_table

    repository, catalog = open_catalog(ctx, config)
    now = repository.clock()
    judge_segments(catalog, now)
    good, bad = quarantine(recent(catalog, now), now)
    standing = tiers_now(repository, read_config(ctx, config), now)
    catalog.add(use_rows(catalog.repository, standing, now))
    prices = read_config(ctx, config).price_tables()
    tiers = outlook(good, standing, now, prices=prices, looks=tier_use(catalog))
    if unknown := _unknown_points(repository, catalog):
        note(f"{unknown} points of the repository are not in {catalog.name}, so what such backups add is in no "
             "forecast; `vmcellar catalog rebuild` brings them in")  # fmt: skip
    if as_json:
        print_json(capacity_json(tiers))
        return
    console().print(capacity_table(tiers))
    if any(tier.costs for tier in tiers):
        console().print(costs_table(tiers))
    if len(bad):
        note(f"{len(bad)} rows of the history were not used; `vmcellar catalog show` says why")


def _unknown_points(repository: Repository, catalog: Catalog) -> int:
    """Points that other hosts made, each of which has a catalog of its own, or that were made before a catalog was
    lost. Reads names alone.
    """
    from vmcellar.repository import layout

    there = {key.removeprefix(layout.POINTS) for key, _ in repository.tier.list(layout.POINTS)}
    return len(there - catalog.known_points(there))
