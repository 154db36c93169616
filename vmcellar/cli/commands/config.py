"""`vmcellar config check|show|schema`."""

from __future__ import annotations

import sys

import typer

from vmcellar.cli.output import note, print_json
from vmcellar.cli.session import PANEL_START, ConfigOption, JsonOption, read_config

config_app = typer.Typer(help="Check and show the configuration.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group to the app."""
    app.add_typer(config_app, name="config", rich_help_panel=PANEL_START)


@config_app.command()
def check(ctx: typer.Context, config: ConfigOption = None) -> None:
    """Validate the file; every mistake is named with its line and the fix."""
    from vmcellar.backup.selection import done_otherwise

    found = read_config(ctx, config)
    jobs = len(found.backups)
    sys.stdout.write(f"{found.source}: valid, {jobs} backup job{'' if jobs == 1 else 's'}\n")
    from vmcellar.sources.libvirt_uri import other_host

    if host := other_host(found.libvirt.uri):
        remote = found.libvirt.remote
        note(
            f"note: the VMs are those of {host}: disks come over NBD with TLS, with the certificates in "
            f"{remote.certificates}, from ports {remote.ports} there; scratch files lie in its storage pool "
            f"{remote.scratch_pool} (`vmcellar doctor` looks)"
        )
    for job in found.backups:
        for path in job.excluded_paths():
            note(f"note: job {job.name}: exclude {path}: disks are read in whole blocks, so this path is backed up too")
        if job.mode == "incremental":
            note(f"note: job {job.name}: mode {job.mode} is done as auto: every point restores without the others")
        if otherwise := done_otherwise(found, job.name):
            note(f"warning: job {job.name}: {otherwise}")
        if not found.is_hot(job.storage):
            note(f"note: job {job.name}: its storage is not served by this version, which keeps packs on the tier hot")


@config_app.command()
def show(ctx: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Print all values in force, with the defaults filled in. Secrets stay references."""
    from vmcellar.config.load import shown_config

    values = shown_config(read_config(ctx, config))
    if as_json:
        print_json(values)
        return
    import yaml

    sys.stdout.write(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


@config_app.command()
def schema() -> None:
    """Print the JSON schema of the file, for editors."""
    from vmcellar.config.load import json_schema

    print_json(json_schema())
