"""`vmcellar drill POINT`: restore a point, boot it alone, check it, measure it, throw it away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vmcellar.cli.bars import progress_bars
from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import (
    PANEL_LOOK,
    ConfigOption,
    IdentityOption,
    JsonOption,
    read_config,
)
from vmcellar.cli.signals import cancel_on_signals
from vmcellar.errors import UsageError

if TYPE_CHECKING:
    from vmcellar.config.model import Config


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel=PANEL_LOOK)(drill)


def drill(
    ctx: typer.Context,
    point: Annotated[
        str | None, typer.Argument(metavar="[POINT]", help="A point's id, a unique prefix of it, or VM@latest.")
    ] = None,
    check: Annotated[
        list[str] | None,
        typer.Option(metavar="COMMAND", help="Also run this in the guest; it must end with 0. May be repeated."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the VM running, to look at it.")] = False,
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove what drills were kept or left; a living drill stays.")
    ] = False,
    identity: IdentityOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Restore a point into a scratch folder and boot it, with no way out: does it live, and how long did it take?

    Signs of life and checks are those of `drill:` in the job that made the point. The finding becomes evidence in the
    repository; exit 1 when the point failed. The copy is removed whatever happens, unless --keep.
    """
    if (point is None) != clear:
        raise UsageError("name a point, or give --clear", hint="such as: vmcellar drill web1@latest")
    settings = read_config(ctx, config)
    if point is None:
        _clear(settings, as_json)
        return
    from vmcellar.cli.keyfiles import read_private
    from vmcellar.cli.render.evidence import evidence_json, proof_text
    from vmcellar.quality import proving
    from vmcellar.repository.repository import Repository

    private = read_private(identity) if identity else None
    repository = Repository.open(settings, private)
    found = repository.point(point)
    wishes = proving.DrillWishes(tuple(check or ()), keep, private)
    with cancel_on_signals() as cancel, progress_bars() as progress:
        record, name = proving.drill(repository, settings, found, progress, cancel, wishes)
    if as_json:
        print_json({**evidence_json(record), "key": name.key})
    else:
        console().print(proof_text([record], every=True))
    if keep:
        note("the VM was kept, see `virsh list`; `vmcellar drill --clear` removes it")
    if record.verdict == "failed":
        raise typer.Exit(1)


def _clear(settings: Config, as_json: bool) -> None:
    from vmcellar.restore import drill_journal

    cleared = drill_journal.clear(settings.state, kept=True)
    if as_json:
        print_json(cleared)
    else:
        console().print("\n".join(f"removed {name}" for name in cleared) or "nothing to remove")
