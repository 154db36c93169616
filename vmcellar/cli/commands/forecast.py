"""`vmcellar forecast [VM]` and `vmcellar anomalies [VM]`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from vmcellar.cli.commands.catalog import open_catalog
from vmcellar.cli.historyframe import HistoryOption, SampleOption, Source, read_frame
from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import PANEL_LOOK, ConfigOption, JsonOption, read_config
from vmcellar.errors import UsageError

VmArgument = Annotated[str | None, typer.Argument(metavar="[VM]", help="Only this VM.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command(rich_help_panel=PANEL_LOOK)(forecast)
    app.command(rich_help_panel=PANEL_LOOK)(anomalies)


def forecast(
    ctx: typer.Context,
    vm: VmArgument = None,
    history: HistoryOption = None,
    sample: SampleOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forecast how much will change, and the next run's size and duration, with 80 and 95 % intervals.

    A disk's model must beat "the same as last week" on that disk's past, else that baseline is used and named. A
    history that is too short, broken or old is refused with the reason.
    """
    from vmcellar.analysis.forecast import forecast_change
    from vmcellar.analysis.next_run import next_runs
    from vmcellar.cli.render import analysis as render

    source = Source(config, history, sample)
    frame, now = read_frame(ctx, source, vm)
    outlook = forecast_change(frame, now, source.zone)
    runs = next_runs(frame, outlook)
    if as_json:
        print_json(render.outlook_json(outlook, runs))
        return
    if outlook.forecasts:
        console().print(render.outlook_table(outlook))
    if runs:
        console().print(render.next_runs_table(runs))
    for refusal in outlook.refusals:
        note(f"no forecast of {refusal.vm} {refusal.disk}: {refusal.reason}")


def anomalies(
    ctx: typer.Context,
    vm: VmArgument = None,
    days: Annotated[float, typer.Option(help="How many days to look back.", min=0.01, max=365)] = 7.0,
    history: HistoryOption = None,
    sample: SampleOption = None,
    judged: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Close what waits at this VM with your words; removes the pins made for it."),
    ] = None,
    keep_pins: Annotated[bool, typer.Option("--keep-pins", help="With --judged: leave the pins.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is strange about the latest backups, judged by each VM's own past, and what followed from it.

    Ransomware (entropy up, ratio and deduplication down), sudden change, nothing changed at all, slow runs, long
    freezes, growth. What follows is done by the flow analyse-history, as on_anomaly: of the VM's job says.
    """
    source = Source(config, history, sample)
    if keep_pins and judged is None:
        hint = "type `vmcellar anomalies VM --judged TEXT --keep-pins`"
        raise UsageError("--keep-pins goes with --judged", hint=hint)
    if judged is not None:
        _judge(ctx, source, vm, judged, unpin=not keep_pins)
        return
    from vmcellar.analysis.anomalies import STATED, find
    from vmcellar.analysis.unjudged import unjudged
    from vmcellar.cli.render import analysis as render

    frame, now = read_frame(ctx, source, vm)
    found, blind = find(frame, now, days, source.zone), unjudged(frame, now)
    rows = open_catalog(ctx, config)[1].anomalies(vm or "") if source.is_catalog else []
    if as_json:
        print_json(
            {
                "anomalies": [render.anomaly_json(one) for one in found],
                "consequences": [render.consequence_json(row) for row in rows],
                "not_judged": [asdict(one) for one in blind],
                "false_alarms_per_vm_year": STATED,
            }
        )
        return
    if found:
        console().print(render.anomalies_table(found))
    if rows:
        console().print(render.consequences_table(rows))
    for one in blind:
        note(f"not judged: {one.vm} {one.disk}: {one.reason}")
    note(f"{len(found)} anomalies in {days:g} days; false alarms at most {sum(STATED.values()):.1f} per VM and year")


def _judge(ctx: typer.Context, source: Source, vm: str | None, verdict: str, *, unpin: bool) -> None:
    if vm is None or not source.is_catalog or not verdict.strip():
        raise UsageError(
            "--judged takes your words about one VM of this host", hint="type `vmcellar anomalies VM --judged TEXT`"
        )
    from vmcellar.analysis import consequences

    repository, catalog = open_catalog(ctx, source.config)
    rows = consequences.judge(catalog, repository, read_config(ctx, source.config), vm, verdict.strip(), unpin=unpin)
    note(f"{vm}: judged: {', '.join(row.kind for row in rows)}; {'their pins are gone' if unpin else 'pins stay'}")
