"""`vmcellar recover [VM] [--resume]`."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import PANEL_UPKEEP, ConfigOption, JsonOption, open_engine
from vmcellar.errors import PermanentError, TransientError

if TYPE_CHECKING:
    from pathlib import Path

    from vmcellar.engine import Engine


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel=PANEL_UPKEEP)(recover)


def recover(
    ctx: typer.Context,
    vm: Annotated[str | None, typer.Argument(metavar="[VM]", help="Only this VM.")] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Keep, and their VMs held, the runs that the next backup can go on with."),
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let VMs go and clear what killed backups left: jobs, orphan checkpoints, scratch and landing files.

    Every backup clears its own VM first, and goes on with a run that can go on; here such a run is undone, too, unless
    --resume keeps it. The server that $PREFECT_API_URL names is told of flow runs whose process is gone, if it answers.
    """
    from vmcellar.backup.stages import recover as recover_runs
    from vmcellar.cli.render.runs import actions_table

    engine = open_engine(ctx, config)
    actions = recover_runs(engine, vm, resume=resume)
    if vm is None:
        from vmcellar.backup.model import RecoverAction
        from vmcellar.restore import drill_journal

        left = drill_journal.clear(engine.state)
        actions += [RecoverAction("", name, "abandoned", drill_journal.CLEARED) for name in left]
        _tell_server(engine.state)
    elif not actions:
        _refuse_unknown(engine, vm)
    if as_json:
        print_json([asdict(action) for action in actions])
    elif actions:
        console().print(actions_table(actions))
    else:
        console().print("nothing to recover")


def _refuse_unknown(engine: Engine, vm: str) -> None:
    """Whoever mistypes the name of a VM that is held must not read that there is nothing to recover."""
    from vmcellar.backup.selection import known_vms

    with suppress(TransientError):  # a libvirt that does not answer knows no better
        known = {each.name for each in known_vms(engine.config.libvirt.uri, tags=False)}
        if vm not in known and not engine.repository.points_of(vm):
            hint = f"VMs here are: {', '.join(sorted(known)) or 'none'}"
            raise PermanentError(f"{vm}: no VM of this name is known, and no run of one left anything", hint=hint)


def _tell_server(state: Path) -> None:
    """Give flow runs of this host whose process is gone the state that is true; VMs do not wait for the server."""
    if not any((state / "flow-runs").glob("*.json")):
        return  # nothing to tell: Prefect need not be loaded
    from tasks.server import answers

    url = os.environ.get("PREFECT_API_URL", "")
    if not url:
        return
    if not answers(url):
        note(f"note: the Prefect server at {url} does not answer: `recover-host` tells it what became of flow runs")
        return
    from tasks.runrecords import settle
    from vmcellar.cli.onserver import on_server

    for record in on_server(settle(state)):
        note(f"flow run {record.id}: its process is gone; the server is told")
