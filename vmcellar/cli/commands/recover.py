"""`vmcellar recover [VM] [--resume]`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from vmcellar.cli.output import console, print_json
from vmcellar.cli.session import PANEL_UPKEEP, ConfigOption, JsonOption, open_engine
from vmcellar.errors import PermanentError, TransientError

if TYPE_CHECKING:
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
