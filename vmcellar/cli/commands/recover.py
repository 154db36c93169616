"""`vmcellar recover [VM] [--resume]`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from vmcellar.cli.output import console, print_json
from vmcellar.cli.session import PANEL_UPKEEP, ConfigOption, JsonOption, open_engine


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
    --resume keeps it.
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
    if as_json:
        print_json([asdict(action) for action in actions])
    elif actions:
        console().print(actions_table(actions))
    else:
        console().print("nothing to recover")
