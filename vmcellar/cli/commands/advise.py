"""`vmcellar advise`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from vmcellar.cli.commands.catalog import open_catalog
from vmcellar.cli.historyframe import HistoryOption, SampleOption, Source, read_frame
from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import PANEL_LOOK, ConfigOption, JsonOption, read_config
from vmcellar.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from vmcellar.analysis.advise import Advice


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel=PANEL_LOOK)(advise)


def advise(
    ctx: typer.Context,
    rpo: Annotated[
        str | None, typer.Option(metavar="TIME", help="The RPO of VMs whose job names none, as in 8h or 1d.")
    ] = None,
    concurrent: Annotated[
        int | None,
        typer.Option(
            help="How many backups this host runs at once; default: limits.vms, or fewer by limits.shared; else 2.",
            min=1,
        ),
    ] = None,
    budget: Annotated[
        float, typer.Option(help="Work that may be done, as a share of what today's schedules cost.", min=0.1, max=10)
    ] = 1.05,
    even: Annotated[
        bool, typer.Option("--even/--uneven", help="Serve no class of RPO worse than today, or as much as can be.")
    ] = True,
    apply: Annotated[
        bool, typer.Option("--apply", help="Make it the schedules of the jobs that have one, on the server too.")
    ] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Take the last applied advice back.")] = False,
    gains: Annotated[
        bool, typer.Option("--gains", help="Only show what applied advice really brought, beside what was predicted.")
    ] = False,
    storage: Annotated[
        bool, typer.Option("--storage", help="Advise on compression, chunk size, consolidation and tier rules instead.")
    ] = False,
    host: Annotated[str, typer.Option(metavar="NAME", help="As given to `deploy --host`; default `vmcellar up`.")] = "",
    history: HistoryOption = None,
    sample: SampleOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Advise when and how often to back up each VM: fewer breaches of the RPO at the same work, and no rush hours.

    A dry run unless --apply is given: then VMs get schedules of their own, within their job's window, and the catalog
    notes what was changed and why. RPO and window come from the jobs of the configuration; today's schedules are what
    the history shows. Times are UTC.
    """
    from vmcellar.cli import applyadvice

    where = host or "here"
    source = Source(config, history, sample)
    _one_thing(source, {"--apply": apply, "--undo": undo, "--gains": gains, "--storage": storage})
    wanted = _seconds(rpo)
    if undo:
        applyadvice.undo(read_config(ctx, config), open_catalog(ctx, config)[1], where)
        return
    frame, now = read_frame(ctx, source)
    if storage:
        _show_storage(ctx, config, frame, as_json=as_json)
        return
    if gains:
        _show_gains(ctx, config, frame, now, as_json=as_json)
        return
    from vmcellar.analysis import adapting
    from vmcellar.analysis.cellar_bounds import Cellar
    from vmcellar.cli.render import analysis as render
    from vmcellar.policy.timetable import read_advised

    settings = read_config(ctx, config) if config is not None or source.is_catalog else None
    jobs = settings.backups if settings else ()
    at_once = concurrent or (settings.limits.at_once if settings else 2)
    catalog = open_catalog(ctx, config)[1] if source.is_catalog else None
    own = None if catalog is None else adapting.own_runs(catalog.schedule_changes())
    cellar = None if settings is None else Cellar.of(settings, catalog)
    standing = read_advised(settings.state) if settings is not None and source.is_catalog else ()
    wishes = adapting.Wishes(at_once, budget, even, wanted)
    advice = adapting.advice_for(frame, now, jobs, wishes, own, cellar, standing)
    if rpo is None and not any(job.rpo for job in jobs):
        note("no VM has an RPO (rpo: in the configuration, or --rpo): only the load is laid out better")
    if advice.changes and not as_json:
        _show(advice)
    if apply and settings is not None:
        applyadvice.apply(settings, open_catalog(ctx, config)[1], advice, where)
    else:
        note("nothing was changed; times are UTC")
    if as_json:  # last, as it says whether it was applied
        print_json({**render.advice_json(advice), "applied": apply})


def _one_thing(source: Source, wanted: dict[str, bool]) -> None:
    """UsageError when more than one thing is to be done, or one with another history than this host's."""
    named = [name for name, chosen in wanted.items() if chosen]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} cannot be had at once", hint="type one after the other")
    if named and not source.is_catalog:
        hint = "leave --history and --sample out"
        raise UsageError(f"{named[0]} goes by this host's own history", hint=hint)


def _show_storage(ctx: typer.Context, config: Path | None, frame: pd.DataFrame, *, as_json: bool) -> None:
    from dataclasses import asdict

    from vmcellar.analysis import followed
    from vmcellar.analysis.storing import proposals
    from vmcellar.cli.render import analysis as render

    repository, catalog = open_catalog(ctx, config)
    sight = followed.Sight(repository, read_config(ctx, config), frame, repository.clock())
    found = proposals(repository, sight.config, frame, sight.now)
    followed.note(catalog, found, sight)
    if as_json:
        print_json({"proposals": [asdict(one) for one in found]})
    else:
        console().print(render.proposals_table(found))
        note("nothing was changed; `vmcellar advise --gains` tells later what came of advice that was followed")


def _show_gains(
    ctx: typer.Context, config: Path | None, frame: pd.DataFrame, now: float | None, *, as_json: bool
) -> None:
    from dataclasses import asdict

    from vmcellar.analysis import followed
    from vmcellar.analysis.gains import gains
    from vmcellar.cli.render import analysis as render

    repository, catalog = open_catalog(ctx, config)
    moment = time.time() if now is None else now
    found = gains(catalog.schedule_changes(), frame, moment)
    sight = followed.Sight(repository, read_config(ctx, config), frame, moment)
    stored = followed.storage_gains(catalog, sight)
    if as_json:
        print_json(
            {
                "gains": [{**asdict(one), "time": render.rfc3339(one.time)} for one in found],
                "storage": [{**asdict(one), "time": render.rfc3339(one.time)} for one in stored],
            }
        )
        return
    if found:
        console().print(render.gains_table(found))
    if stored:
        console().print(render.storage_gains_table(stored))
    if not found and not stored:
        note("no advice holds that was applied")


def _show(advice: Advice) -> None:
    from vmcellar.cli.render import analysis as render

    console().print(render.advice_table(advice))
    console().print(render.advice_totals(advice))
    for conflict in advice.conflicts:
        note(f"cannot be had: {conflict}")
    for missing in advice.unknown:
        note(f"not taken into account: {missing}")


def _seconds(rpo: str | None) -> float | None:
    from vmcellar.config.units import parse_duration

    try:
        return None if rpo is None else float(parse_duration(rpo))
    except ValueError as error:
        raise UsageError(f"--rpo {rpo}: {error}") from None
