"""`vmcellar prove [POINT]... [--due N]`: do points restore? Without booting them."""

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
    open_repository,
    read_config,
)
from vmcellar.cli.signals import cancel_on_signals
from vmcellar.errors import CancelledError, UsageError, VmcellarError

if TYPE_CHECKING:
    from vmcellar.config.model import Config
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel=PANEL_LOOK)(prove)


def prove(
    ctx: typer.Context,
    points: Annotated[
        list[str] | None, typer.Argument(metavar="[POINT]...", help="Ids, unique prefixes of them, or VM@latest.")
    ] = None,
    due: Annotated[int, typer.Option(min=0, metavar="N", help="The N points with the highest risk.")] = 0,
    identity: IdentityOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove that points restore: decode every chunk, restore each disk, compare it with its map, check file systems.

    Needs scratch space for one disk at a time. What is found becomes evidence in the repository; a point that fails is
    no longer verified, and the next backup of its VM reads everything. Exit 1 when any fails or cannot be proven.
    """
    if bool(points) == bool(due):
        raise UsageError("name points, or give --due N", hint="such as: vmcellar prove web1@latest")
    repository, settings = open_repository(ctx, config, identity), read_config(ctx, config)
    chosen = [repository.point(name) for name in points or ()] or _due(repository, settings, due)
    if not chosen:
        note("no restore points yet; `vmcellar backup VM` makes one")
    from vmcellar.cli.render.evidence import evidence_json, proof_text
    from vmcellar.quality import proving

    found, problems = [], 0
    with cancel_on_signals() as cancel, progress_bars() as progress:
        for point in chosen:
            try:
                record, name = proving.prove(repository, settings, point, None, progress, cancel)
            except CancelledError:
                raise
            except VmcellarError as error:  # which says nothing about it, nor about the others
                if len(chosen) == 1:
                    raise
                problems += 1
                note(f"{point.vm} {point.id} could not be proven: {error}")
                continue
            found.append({**evidence_json(record), "key": name.key})
            if not as_json:
                console().print(f"{record.vm} {record.point}")
                console().print(proof_text([record], every=True))
    if as_json:
        print_json(found)
    if problems or any(record["verdict"] == "failed" for record in found):
        raise typer.Exit(1)


def _due(repository: Repository, settings: Config, count: int) -> list[RestorePoint]:
    from vmcellar.policy.risk import ranked
    from vmcellar.quality import selection

    risks = ranked(selection.facts(repository, settings, repository.clock()))
    return [repository.point(risk.facts.point) for risk in risks[:count]]
