"""`vmcellar metrics`: what Prometheus asks for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmcellar.cli.output import note
from vmcellar.cli.session import PANEL_LOOK, ConfigOption, read_config
from vmcellar.cli.signals import cancel_on_signals
from vmcellar.errors import PermanentError, UsageError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

POLL_SECONDS = 0.5


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel=PANEL_LOOK)(metrics)


def metrics(
    ctx: typer.Context,
    listen: Annotated[
        str | None, typer.Option(metavar="[ADDRESS:]PORT", help="Serve /metrics until stopped; loopback by default.")
    ] = None,
    textfile: Annotated[
        Path | None, typer.Option(metavar="FILE.prom", help="Write them once, for node_exporter's textfile collector.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Print the history of backups as Prometheus metrics, serve them, or write them to a file.

    Reads the catalog alone, and asks the server of PREFECT_API_URL for runs that wait: no key, no libvirt, no
    repository. Rules and a dashboard: deployments/monitoring.
    """
    if listen is not None and textfile is not None:
        raise UsageError("--listen and --textfile exclude each other")
    if textfile is not None and textfile.exists() and not textfile.is_file():
        raise UsageError(f"--textfile {textfile}: not a regular file", hint="a new file would take its place")
    registry = _registry(ctx, config)
    if listen is not None:
        _serve(registry, listen)
        return
    from prometheus_client import generate_latest, write_to_textfile

    if textfile is not None:
        write_to_textfile(str(textfile), registry)
    else:
        typer.echo(generate_latest(registry).decode(), nl=False)


def _registry(ctx: typer.Context, config: Path | None) -> CollectorRegistry:
    from prometheus_client import CollectorRegistry

    from vmcellar.catalog.catalog import Catalog
    from vmcellar.catalog.databases import database_of
    from vmcellar.catalog.metrics import CatalogCollector

    settings = read_config(ctx, config)
    registry = CollectorRegistry()
    database = database_of(settings)
    registry.register(CatalogCollector(lambda: Catalog(database, ""), settings.backups))
    if url := os.environ.get("PREFECT_API_URL"):
        from tasks.queue import QueueCollector, asking

        registry.register(QueueCollector(asking(url)))
    return registry


def _serve(registry: CollectorRegistry, listen: str) -> None:
    import time

    from prometheus_client import start_http_server

    address, _, port = listen.rpartition(":")
    if not (port.isascii() and port.isdigit()) or not 0 < int(port) < 1 << 16:
        raise UsageError(f"--listen {listen}: no port", hint="such as 9816, or 0.0.0.0:9816")
    try:
        server, thread = start_http_server(int(port), address.strip("[]") or "127.0.0.1", registry)
    except OSError as error:
        raise PermanentError(f"cannot listen on {listen}: {error.strerror}", hint="choose another port") from error
    note(f"serving http://{address or '127.0.0.1'}:{port}/metrics; Ctrl-C stops")
    with cancel_on_signals() as cancel:
        while not cancel.cancelled:
            time.sleep(POLL_SECONDS)
    server.shutdown()
    server.server_close()
    thread.join()
