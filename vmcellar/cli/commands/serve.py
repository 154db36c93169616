"""`vmcellar serve POINT`."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import PANEL_WORK, ConfigOption, IdentityOption, JsonOption, config_path
from vmcellar.cli.signals import cancel_on_signals
from vmcellar.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel=PANEL_WORK)(serve)


def serve(
    ctx: typer.Context,
    point: Annotated[str, typer.Argument(metavar="POINT", help="A point's id, a unique prefix of it, or VM@latest.")],
    disk: Annotated[list[str] | None, typer.Option(metavar="TARGET", help="Only this disk; may be repeated.")] = None,
    socket: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Unix socket to listen on; else one in a new private folder.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Listen on this TCP port of 127.0.0.1 instead.")
    ] = None,
    identity: IdentityOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve the disks of a point over NBD, read-only, until Ctrl-C: for qemu-img, nbdcopy or any other NBD client.

    Prints one address per disk. What cannot be read is an I/O error to the client and named here.
    """
    if socket is not None and port is not None:
        raise UsageError("--socket and --port were both given", hint="choose one of them")
    from vmcellar.cli.keyfiles import read_private
    from vmcellar.config import load_config
    from vmcellar.repository.repository import Repository
    from vmcellar.restore.plan import chosen_disks
    from vmcellar.restore.serve import Address, Opening, Server

    opening = Opening(config_path(ctx, config), read_private(identity) if identity else None)
    repository = Repository.open(load_config(opening.config), opening.private)
    found = repository.point(point)
    with ExitStack() as stack:
        stack.callback(repository.close)
        if socket is None and port is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vmcellar-serve-"))
            socket = Path(folder) / "nbd.sock"
        address = Address(socket.absolute() if socket else None, port)
        server = Server(repository, opening, found, chosen_disks(found, disk or ()), address)
        stack.enter_context(cancel_on_signals(server.stop))
        stack.enter_context(server)
        if as_json:
            print_json({"point": found.id, "vm": found.vm, "disks": server.uris()})
        else:
            for target, uri in server.uris().items():
                console().print(f"{target}  {uri}", soft_wrap=True)
        console().file.flush()
        note("serving; Ctrl-C ends it")
        server.wait()
