"""`vmcellar locks`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import PANEL_UPKEEP, ConfigOption, JsonOption, read_config

if TYPE_CHECKING:
    from vmcellar.config import Config
    from vmcellar.repository.leases import FoundLease


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel=PANEL_UPKEEP)(locks)


def locks(ctx: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show which VMs are being worked on from this host, and who holds a lease of the repository, on any host.

    The kernel frees a VM's lock when its process ends, however it ends, so none can be stale. Leases that are stale go
    by themselves with the next gc.
    """
    from vmcellar.cli.hostlocks import held_locks
    from vmcellar.cli.render.locks import lease_json, leases_table, locks_table

    settings = read_config(ctx, config)
    held = held_locks(settings.state)
    found, now = _leases(settings)
    if as_json:
        print_json([*(lock.to_json() for lock in held), *(lease_json(lease, now) for lease in found)])
        return
    if held:
        console().print(locks_table(held))
    if found:
        console().print(leases_table(found, now))
    if not held and not found:
        note("no VM is being worked on, and nobody holds a lease")


def _leases(settings: Config) -> tuple[list[FoundLease], float]:
    """The leases of the repository, and now by its clock; none, with a note, when the repository cannot be opened."""
    from vmcellar.errors import VmcellarError
    from vmcellar.repository import leases
    from vmcellar.repository.repository import Repository

    try:
        repository = Repository.open(settings, refresh=False)
        return leases.found(repository.tier, repository.keyring), repository.clock()
    except VmcellarError as error:
        note(f"leases cannot be shown: {error.message}")
        return [], 0.0
