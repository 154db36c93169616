"""`vmcellar doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from vmcellar.cli.output import console, print_json
from vmcellar.cli.session import PANEL_START, ConfigOption, JsonOption, read_config

if TYPE_CHECKING:
    from vmcellar.cli.checks.finding import Finding
    from vmcellar.config import Config


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel=PANEL_START)(doctor)


def doctor(ctx: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check this host and its VMs, and say the fix for each thing that is wrong.

    Exit 1 when a check failed; warnings and notes leave it at 0.
    """
    findings = list(_examine(read_config(ctx, config)))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        from vmcellar.cli.render.doctor import findings_table

        console().print(findings_table(findings))
    if any(finding.status == "failed" for finding in findings):
        raise typer.Exit(1)


def _examine(config: Config) -> Iterator[Finding]:
    from vmcellar.cli.checks.catalog import check_catalog
    from vmcellar.cli.checks.domains import check_domains
    from vmcellar.cli.checks.finding import Finding
    from vmcellar.cli.checks.host import check_host
    from vmcellar.cli.checks.storage import check_storage

    yield Finding("configuration", "ok", f"{config.source}, valid")
    yield from check_storage(config)
    yield from check_catalog(config)
    yield from check_host(config)
    yield from check_domains(config.libvirt)
