"""`vmcellar jobs` and `vmcellar tag`: which VMs each job takes now, and the tags that it chooses them by."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import PANEL_LOOK, PANEL_START, ConfigOption, JsonOption, read_config
from vmcellar.errors import UsageError

if TYPE_CHECKING:
    from vmcellar.backup.selection import KnownVm
    from vmcellar.config.jobs import BackupJob


def register(app: typer.Typer) -> None:
    """Add both commands to the app."""
    app.command(rich_help_panel=PANEL_LOOK)(jobs)
    app.command(rich_help_panel=PANEL_START)(tag)


def jobs(ctx: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show each backup job and the VMs that its `domains:` matches now.

    Says which VMs no job takes, and which several take.
    """
    from vmcellar.backup.selection import known_vms

    settings = read_config(ctx, config)
    vms = known_vms(settings.libvirt.uri, tags=True)
    matched = {job.name: [vm for vm in vms if job.selects(vm.name, vm.tags)] for job in settings.backups}
    if as_json:
        print_json([_as_json(job, matched[job.name]) for job in settings.backups])
    elif settings.backups:
        from vmcellar.cli.render.jobs import jobs_table

        console().print(jobs_table(settings.backups, matched))
    else:
        note("no jobs: add `backups:` to the configuration")
    _warn(settings.backups, matched, vms)


def _as_json(job: BackupJob, vms: Sequence[KnownVm]) -> dict[str, object]:
    schedule = None if job.schedule is None else str(job.schedule)
    matching = [{"vm": vm.name, "running": vm.running, "tags": sorted(vm.tags)} for vm in vms]
    return {"name": job.name, "schedule": schedule, "domains": list(job.domains), "vms": matching}


def _warn(backups: Sequence[BackupJob], matched: dict[str, list[KnownVm]], vms: Sequence[KnownVm]) -> None:
    for job in backups:
        if not matched[job.name]:
            note(f"note: job {job.name} matches no VM of this host now")
    if not backups:
        return
    for vm in vms:
        taking = [job.name for job in backups if vm in matched[job.name]]
        if not taking:
            note(f"note: no job takes {vm.name}")
        elif len(taking) > 1:
            note(f"note: {vm.name} is taken by several jobs: {', '.join(taking)}")


def tag(
    ctx: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="The VM.")],
    add: Annotated[list[str] | None, typer.Option("--add", metavar="TAG", help="Give it this tag; repeatable.")] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", metavar="TAG", help="Take this tag away; repeatable.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a VM's tags, or change them; `domains: ["tag:prod"]` chooses VMs by them.

    They are kept in the VM's libvirt metadata, and come back with a restore.
    """
    from vmcellar.config.jobs import TAG_NAME, TAG_WORDS
    from vmcellar.sources.libvirt_connection import Connection
    from vmcellar.sources.libvirt_tags import read_tags, write_tags

    for word in (*(add or ()), *(remove or ())):
        if not TAG_NAME.fullmatch(word):
            raise UsageError(f'"{word}" is no tag: a tag is {TAG_WORDS}', hint="as in `vmcellar tag VM --add prod`")
    with closing(Connection(read_config(ctx, config).libvirt.uri)) as connection:
        domain = connection.domain(vm)
        before = read_tags(domain)
        after = (before | set(add or ())) - set(remove or ())
        if after != before:
            write_tags(domain, after)
    if as_json:
        print_json({"vm": vm, "tags": sorted(after)})
    else:
        sys.stdout.write(f"{vm}: {' '.join(sorted(after)) or 'no tags'}\n")
