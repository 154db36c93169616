"""`vmcellar advise`."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from vmcellar.cli.commands.catalog import open_catalog
from vmcellar.cli.historyframe import HistoryOption, SampleOption, Source, read_frame
from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import PANEL_LOOK, ConfigOption, JsonOption, read_config
from vmcellar.errors import UsageError

if TYPE_CHECKING:
    from vmcellar.analysis.advise import Advice
    from vmcellar.analysis.judging import Need
    from vmcellar.config.jobs import BackupJob


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel=PANEL_LOOK)(advise)


def advise(
    ctx: typer.Context,
    rpo: Annotated[
        str | None, typer.Option(metavar="TIME", help="The RPO of VMs whose job names none, as in 8h or 1d.")
    ] = None,
    concurrent: Annotated[int, typer.Option(help="How many backups this host runs at once.", min=1)] = 2,
    budget: Annotated[
        float, typer.Option(help="Work that may be done, as a share of what today's schedules cost.", min=0.1, max=10)
    ] = 1.0,
    apply: Annotated[
        bool, typer.Option("--apply", help="Make it the schedules of the jobs that have one, on the server too.")
    ] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Take the last applied advice back.")] = False,
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
    if undo:
        applyadvice.undo(read_config(ctx, config), open_catalog(ctx, config)[1], where)
        return
    if apply and (history is not None or sample is not None):
        raise UsageError("--apply goes by this host's own history", hint="leave --history and --sample out")
    from vmcellar.analysis.advise import advise as advise_all
    from vmcellar.analysis.forecast import forecast_change
    from vmcellar.analysis.judging import Host
    from vmcellar.analysis.loads import current_starts, loads_of
    from vmcellar.cli.render import analysis as render

    source = Source(config, history, sample)
    jobs = read_config(ctx, config).backups if config is not None or source.is_catalog else ()
    seconds = _seconds(rpo)
    frame, now = read_frame(ctx, source)
    outlook = forecast_change(frame, now)
    current = current_starts(frame, outlook.now)
    needs = [_need(vm, jobs, seconds) for vm in sorted(current)]
    if not any(need.rpo for need in needs):
        note("no VM has an RPO (rpo: in the configuration, or --rpo): only the load is laid out better")
    advice = advise_all(needs, [Host(concurrent=concurrent)], loads_of(frame, outlook), current, budget)
    if as_json:
        print_json({**render.advice_json(advice), "applied": apply})
    else:
        _show(advice)
    if apply:
        applyadvice.apply(
            read_config(ctx, config), open_catalog(ctx, config)[1], advice, lambda vm: _job(vm, jobs), where
        )
    else:
        note("nothing was changed; times are UTC")


def _show(advice: Advice) -> None:
    from vmcellar.cli.render import analysis as render

    console().print(render.advice_table(advice))
    console().print(render.advice_totals(advice))
    for conflict in advice.conflicts:
        note(f"cannot be had: {conflict}")


def _job(vm: str, jobs: tuple[BackupJob, ...]) -> BackupJob | None:
    """The first job that selects the VM."""
    return next((one for one in jobs if one.selects(vm)), None)


def _seconds(rpo: str | None) -> float | None:
    from vmcellar.config.units import parse_duration

    try:
        return None if rpo is None else float(parse_duration(rpo))
    except ValueError as error:
        raise UsageError(f"--rpo {rpo}: {error}") from None


def _need(vm: str, jobs: tuple[BackupJob, ...], rpo: float | None) -> Need:
    """What the first job that selects the VM asks; windows are local time, the advice UTC."""
    from vmcellar.analysis.judging import Need

    job = _job(vm, jobs)
    window = None
    if job is not None and job.window is not None:
        offset = datetime.now().astimezone().utcoffset()
        ahead = round(offset.total_seconds() / 60) if offset else 0
        window = ((job.window.start - ahead) % 1440, (job.window.end - ahead) % 1440)
    asked = float(job.rpo) if job is not None and job.rpo else rpo
    return Need(vm, rpo=asked, window=window)
