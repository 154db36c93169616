"""`vmcellar forecast [VM]` and `vmcellar anomalies [VM]`."""

from __future__ import annotations

from typing import Annotated

import typer

from vmcellar.cli.historyframe import HistoryOption, SampleOption, Source, read_frame
from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import PANEL_LOOK, ConfigOption, JsonOption

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

    frame, now = read_frame(ctx, Source(config, history, sample), vm)
    outlook = forecast_change(frame, now)
    runs = next_runs(frame, outlook)
    if as_json:
        print_json(render.outlook_json(outlook, runs))
        return
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
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is strange about the latest backups, judged by each VM's own past.

    Ransomware (entropy up, ratio and deduplication down), sudden change, nothing changed at all, slow runs, long
    freezes, growth.
    """
    from vmcellar.analysis.anomalies import STATED, find
    from vmcellar.cli.render import analysis as render

    frame, now = read_frame(ctx, Source(config, history, sample), vm)
    found = find(frame, now, days)
    if as_json:
        print_json({"anomalies": [render.anomaly_json(one) for one in found], "false_alarms_per_vm_year": STATED})
        return
    if found:
        console().print(render.anomalies_table(found))
    note(f"{len(found)} anomalies in {days:g} days; false alarms at most {sum(STATED.values()):.1f} per VM and year")
