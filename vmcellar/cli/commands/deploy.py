"""`vmcellar deploy`, `vmcellar up`: the jobs of the configuration as scheduled deployments on a Prefect server."""

from __future__ import annotations

import importlib.util
import socket
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmcellar.cli.onserver import on_server
from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import PANEL_WORK, ConfigOption, JsonOption, config_path, read_config
from vmcellar.errors import PermanentError, UsageError

if TYPE_CHECKING:
    from deployments.registration import Plan
    from tasks.timetable import Change

PORT = 4200


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command(rich_help_panel=PANEL_WORK)(up)
    app.command(rich_help_panel=PANEL_WORK)(deploy)


def up(
    ctx: typer.Context,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the server and UI listen, on loopback.")] = PORT,
    config: ConfigOption = None,
) -> None:
    """Start a Prefect server with its UI, run this host's scheduled jobs, until stopped.

    Where $PREFECT_API_URL names a server that answers, that one is used. Ctrl-C or SIGTERM stops cleanly: running
    backups are cancelled, their VMs let go. The server's database is in `state:`.
    """
    _needs_prefect()
    path = config_path(ctx, config)
    settings = read_config(ctx, config)
    from deployments.up import Host

    raise typer.Exit(Host(path, settings.state, port).run(note))


def deploy(
    ctx: typer.Context,
    pool: Annotated[
        str, typer.Option(metavar="POOL", help="The process work pool; it is made when it is not there.")
    ] = "vmcellar",
    host: Annotated[str, typer.Option(metavar="NAME", help="The queue whose worker has these VMs.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove deployments of jobs that are gone.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register this host's flows and jobs, with their schedules, for a worker of its own on a shared Prefect server.

    Shows what it will do first. May be repeated: only what differs is written, and schedules that were added in the UI
    stay, as does everything that was paused or disabled there. Then, on this host:
    prefect worker start --pool POOL --work-queue HOST
    """
    _needs_prefect()
    import os

    if not os.environ.get("PREFECT_API_URL"):
        raise UsageError(
            "no Prefect server named", hint="set PREFECT_API_URL, as in deployments/prefect.env; or use `vmcellar up`"
        )
    path, settings, where = config_path(ctx, config), read_config(ctx, config), host or socket.gethostname()
    from deployments import pools, registration

    options = pools.options(pool, where, path)
    plan = on_server(registration.plan(settings, where, **options))
    schedules = on_server(registration.schedule_changes(settings, where))
    if not as_json:
        _show(plan, schedules)
    if dry_run:
        note("nothing was changed")
    elif _agreed(plan, yes, ask=not as_json):
        on_server(pools.ensure(pool, where))
        schedules = on_server(registration.apply(plan, settings))
        note(f"registered; on this host run: prefect worker start --pool {pool} --work-queue {where} --type process")
    if as_json:
        print_json(_as_json(plan, schedules, dry_run))


def _needs_prefect() -> None:
    if importlib.util.find_spec("prefect") is None:
        raise PermanentError("Prefect is not installed", hint="pip install prefect")


def _agreed(plan: Plan, yes: bool, *, ask: bool) -> bool:
    if not plan.gone or yes:
        return True
    if not (ask and sys.stdin.isatty()):
        raise UsageError(
            f"{len(plan.gone)} deployments of jobs that are gone would be removed", hint="give --yes, or --dry-run"
        )
    return typer.confirm("remove the deployments of jobs that are gone?", default=False, abort=True)


def _show(plan: Plan, schedules: list[Change]) -> None:
    for each in plan.new:
        console().print(f"new       {each.full_name}", markup=False)
    for each in plan.there:
        console().print(f"keep      {each.full_name}", markup=False)
    for name, _ in plan.gone:
        console().print(f"remove    {name}: its job is not in the configuration any more", markup=False)
    for automation in plan.new_automations:
        console().print(f"new       automation {automation}", markup=False)
    for automation in plan.changed_automations:
        console().print(f"change    automation {automation}", markup=False)
    for gone in plan.gone_automations:
        console().print(f"remove    automation {gone.name}", markup=False)
    for off in plan.off:
        console().print(f"off       {off.kind} {off.name}: turned off on the server, and stays so", markup=False)
    for change in schedules:
        text = f": {change.schedule}" if change.schedule else ""
        console().print(f"{change.what:9} schedule {change.slug} of {change.deployment}{text}", markup=False)


def _as_json(plan: Plan, schedules: list[Change], dry_run: bool) -> dict[str, Any]:
    return {
        "new": [each.full_name for each in plan.new],
        "there": [each.full_name for each in plan.there],
        "removed": [name for name, _ in plan.gone],
        "automations": {
            "new": plan.new_automations,
            "changed": plan.changed_automations,
            "removed": [each.name for each in plan.gone_automations],
        },
        "off": [{"kind": each.kind, "name": each.name} for each in plan.off],
        "schedules": [
            {"deployment": each.deployment, "what": each.what, "slug": each.slug, "schedule": each.schedule}
            for each in schedules
        ],
        "dry_run": dry_run,
    }
