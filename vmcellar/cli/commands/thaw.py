"""`vmcellar thaw POINT` and `vmcellar thaw --status`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vmcellar.cli.bars import progress_bars
from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import PANEL_WORK, ConfigOption, IdentityOption, JsonOption, open_repository, read_config
from vmcellar.cli.signals import cancel_on_signals
from vmcellar.errors import UsageError

if TYPE_CHECKING:
    from vmcellar.progress import CancelToken
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository
    from vmcellar.restore.plan import RestorePlan
    from vmcellar.restore.thaw import ThawPlan


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel=PANEL_WORK)(thaw)


def thaw(
    ctx: typer.Context,
    point: Annotated[
        str | None, typer.Argument(metavar="[POINT]", help="A point's id, a unique prefix of it, or VM@latest.")
    ] = None,
    speed: Annotated[
        Literal["bulk", "standard", "expedited"], typer.Option(help="How fast: the slower, the cheaper.")
    ] = "standard",
    days: Annotated[int, typer.Option(min=1, max=365, help="Days that the packs stay readable.")] = 3,
    disk: Annotated[list[str] | None, typer.Option(metavar="TARGET", help="Only this disk; may be repeated.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Request it without asking.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Show the thaws that were requested, and request none.")] = (
        False
    ),
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Copy to hot what can be read by now; requests nothing, may be repeated.")
    ] = False,
    rest_of: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Only what `restore --readable --to DIR` has not written yet.")
    ] = None,
    identity: IdentityOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the packs of a point readable that lie in an archive class such as Glacier; it costs money and hours.

    All of them are requested in one batch, after their number, cost and hours were shown. Repeating it is harmless:
    what is being thawed goes on. Then restore the point as any other.
    """
    if status == (point is not None) or (fetch and (status or yes)):
        raise UsageError(
            "name a point, to thaw it or to --fetch it, or give --status", hint="`vmcellar list` shows the points"
        )
    if point is None:
        _show_status(ctx, config, identity, as_json)
        return
    if fetch:
        _fetch(open_repository(ctx, config, identity), point, tuple(disk or ()), as_json)
        return
    from vmcellar.cli.render.thaws import record_json, thaw_json, thaw_text
    from vmcellar.restore.plan import make_plan
    from vmcellar.restore.thaw import ThawRecords, plan_thaw, request_thaw

    settings = read_config(ctx, config)
    repository = open_repository(ctx, config, identity)
    chosen = repository.point(point)
    with cancel_on_signals() as cancel:
        found = make_plan(repository, chosen, tuple(disk or ()), cancel=cancel)
        if rest_of is not None:
            found = _rest_of(repository, chosen, rest_of, found, cancel)
    plan = plan_thaw(repository, found, settings.price_tables(), days)
    if not plan.waits:
        print_json({**thaw_json(plan), "requested": None}) if as_json else note(
            f"nothing to thaw: all {len(found.keys)} packs {'of' if rest_of is None else 'that are left of'} point "
            f"{plan.point} can be read now"
        )
        return
    plan.offer(speed)  # refuses a speed that the archive does not have, before anything is asked
    if not as_json:
        console().print(thaw_text(plan))
    if not yes:
        _ask(plan, speed)
    record = request_thaw(repository, plan, speed, ThawRecords(settings.state, repository))
    if as_json:
        print_json({**thaw_json(plan), "requested": record_json(record)})
        return
    note(f"requested: {len(record.keys)} packs, {speed}; `vmcellar thaw --status` says when they can be read")


def _rest_of(
    repository: Repository, point: RestorePoint, folder: Path, plan: RestorePlan, cancel: CancelToken
) -> RestorePlan:
    from vmcellar.restore.as_thawed import rest_of

    found = rest_of(repository, point, folder, plan, cancel)
    if found is None:
        raise UsageError(f"{folder}: no restore has begun there", hint="vmcellar restore POINT --to DIR --readable")
    return found


def _fetch(repository: Repository, name: str, disks: tuple[str, ...], as_json: bool) -> None:
    from vmcellar.cli.render.text import size_text
    from vmcellar.restore.plan import make_plan
    from vmcellar.upkeep.bring import bring

    with cancel_on_signals() as cancel, progress_bars() as progress:
        plan = make_plan(repository, repository.point(name), disks, cancel=cancel)
        done = bring(repository, plan.keys, progress=progress, cancel=cancel)
    if as_json:
        print_json({"point": plan.point, **asdict(done)})
        return
    note(f"copied {done.copied} packs ({size_text(done.bytes)}) to hot; {done.there} were there")
    if done.asleep:
        note(f"{done.asleep} packs cannot be read yet: `vmcellar thaw {plan.point}` asks for them; then repeat this")


def _ask(plan: ThawPlan, speed: str) -> None:
    """UsageError unless the user agrees."""
    if not sys.stdin.isatty():
        raise UsageError("a thaw costs money, and nobody can be asked here", hint="give --yes to request it unasked")
    if not typer.confirm(f"Thaw point {plan.point} of {plan.vm} at speed {speed}?", err=True):
        raise UsageError("nothing was requested")


def _show_status(ctx: typer.Context, config: ConfigOption, identity: IdentityOption, as_json: bool) -> None:
    from vmcellar.cli.render.thaws import status_json, status_table
    from vmcellar.restore.thaw import ThawRecords, thaw_status

    settings = read_config(ctx, config)
    repository = open_repository(ctx, config, identity)
    found = [thaw_status(repository, record) for record in ThawRecords(settings.state, repository).all()]
    if as_json:
        print_json([status_json(one) for one in found])
    elif found:
        console().print(status_table(found))
    else:
        note("no thaw was requested from this host")
