"""`vmcellar prune`, `pin`, `gc`, `consolidate` and `rebuild-index`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vmcellar.cli.bars import progress_counts
from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import PANEL_UPKEEP, ConfigOption, IdentityOption, JsonOption, open_repository, read_config
from vmcellar.cli.signals import cancel_on_signals
from vmcellar.errors import UsageError

if TYPE_CHECKING:
    from vmcellar.policy.retention import Rules
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository

_AGES = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command(rich_help_panel=PANEL_UPKEEP)(prune)
    app.command(rich_help_panel=PANEL_UPKEEP)(pin)
    app.command(rich_help_panel=PANEL_UPKEEP)(gc)
    app.command(rich_help_panel=PANEL_UPKEEP)(consolidate)
    app.command("rebuild-index", rich_help_panel=PANEL_UPKEEP)(rebuild_index)


def _keep(what: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(min=0, metavar="N", help=what)
    return option


def prune(
    ctx: typer.Context,
    vms: Annotated[list[str] | None, typer.Argument(metavar="[VM]...", help="Only the points of these VMs.")] = None,
    keep_last: Annotated[int | None, _keep("The newest N points.")] = None,
    keep_hourly: Annotated[int | None, _keep("The newest point of each of N hours.")] = None,
    keep_daily: Annotated[int | None, _keep("The newest point of each of N days.")] = None,
    keep_weekly: Annotated[int | None, _keep("The newest point of each of N ISO weeks.")] = None,
    keep_monthly: Annotated[int | None, _keep("The newest point of each of N months.")] = None,
    keep_yearly: Annotated[int | None, _keep("The newest point of each of N years.")] = None,
    keep_within: Annotated[
        str | None, typer.Option(metavar="TIME", help="All points younger than this, such as 30d; stands alone.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "--simulate", help="Only show what would stay and go, and why.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Drop restore points by retention: that of the options, else `retention:` of the job that made each point.

    Rules are those of Proxmox Backup Server, applied from last to yearly, in this host's time zone. Pinned points, the
    newest of each VM, and the one that the next backup builds on always stay. Space is freed by `vmcellar gc`.
    """
    counts = (keep_last, keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_yearly)
    rules = _rules(counts, keep_within)
    with cancel_on_signals() as cancel, progress_counts() as progress:
        from vmcellar.policy.localzone import local_zone
        from vmcellar.repository import evidence
        from vmcellar.upkeep import pins
        from vmcellar.upkeep import prune as engine

        choose = engine.rules_for_all(rules) if rules else engine.rules_of_jobs(read_config(ctx, config).backups)
        repository = open_repository(ctx, config)
        points = evidence.sound(_of_vms(repository, vms or []), evidence.standings(repository.tier))
        pinned = pins.pinned(repository)
        plan = engine.plan(points, choose, pins=pinned, now=repository.clock(), zone=local_zone())
        dropped = [] if dry_run else engine.drop(repository, plan, progress, cancel)
    from vmcellar.cli.render.upkeep import prune_json, prune_summary, prune_table

    if as_json:
        print_json(prune_json(plan, {point.id for point in dropped}, dry_run))
        return
    if plan:
        console().print(prune_table(plan))
    note(prune_summary(plan, len(dropped), dry_run))


def _rules(given: tuple[int | None, ...], within: str | None) -> Rules | None:
    from vmcellar.config.jobs import KeepByAge
    from vmcellar.config.units import parse_duration

    chosen = {name: count for name, count in zip(_AGES, given, strict=True) if count is not None}
    if within is None:
        if chosen and not any(chosen.values()):
            raise UsageError(
                f"--keep-{next(iter(chosen))} 0 and no other --keep option: that is no rule",
                hint="give a number above 0, or no --keep option at all: then the jobs' retention holds",
            )
        return KeepByAge(**chosen) if chosen else None
    if chosen:
        raise UsageError("--keep-within stands alone", hint="leave the other --keep options out")
    try:
        return parse_duration(within)
    except ValueError as error:
        raise UsageError(f"--keep-within {within}: {error}") from error


def _of_vms(repository: Repository, vms: list[str]) -> list[RestorePoint]:
    from vmcellar.repository.points import unknown_vm

    points = repository.points()
    known = {point.vm for point in points}
    for vm in vms:
        if vm not in known:
            raise unknown_vm(vm, known)
    return [point for point in points if not vms or point.vm in vms]


def pin(
    ctx: typer.Context,
    point: Annotated[
        str | None, typer.Argument(metavar="[POINT]", help="An id, a prefix of one, or VM@latest.")
    ] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove the pin; if it has none of its own, those of work that holds it.")
    ] = False,
    text: Annotated[str, typer.Option("--note", metavar="TEXT", help="Why it stays.")] = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pin a restore point, so that no prune drops it; without POINT, list the pins."""
    from vmcellar.cli.render.upkeep import pins_json, pins_table
    from vmcellar.upkeep import pins

    repository = open_repository(ctx, config)
    if point is None:
        if remove or text:
            raise UsageError("name a restore point", hint="such as: vmcellar pin web1@latest --note 'before upgrade'")
        listed = pins.listed(repository)
        if as_json:
            print_json(pins_json(listed))
        elif listed:
            console().print(pins_table(listed))
        else:
            note("no restore point is pinned")
        return
    name = point if remove and point in pins.pinned(repository) else repository.point(point).id
    left = pins.unpin(repository, name) if remove else []
    if not remove:
        pins.pin(repository, repository.point(name), text)
    if as_json:
        print_json({"point": name, "pinned": bool(left) or not remove, "note": text})
        return
    for each in left:
        why = f"{each.pin.note}, on {each.pin.host}" if each.pin else "its pin cannot be read"
        note(f"{name} is still held ({why}); if that is over, remove that pin as well: type the same once more")
    if not left:
        note(f"{name} is {'not pinned any more' if remove else 'pinned'}")


def gc(
    ctx: typer.Context,
    dry_run: DryRun = False,
    grace: Annotated[
        str, typer.Option(metavar="TIME", help="How long what no point needs stays after it was marked.")
    ] = "24h",
    identity: IdentityOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete packs that no restore point needs: one run marks them, a later one deletes them after the grace time.

    Safe beside running backups, on any host. Deletes nothing when anything cannot be read or is missing.
    """
    from vmcellar.config.units import parse_duration

    try:
        seconds = parse_duration(grace)
    except ValueError as error:
        raise UsageError(f"--grace {grace}: {error}") from error
    with cancel_on_signals() as cancel, progress_counts() as progress:
        from vmcellar.upkeep import gc as engine
        from vmcellar.upkeep.rules import kept_until

        repository = open_repository(ctx, config, identity)
        kept = kept_until(read_config(ctx, config))
        report = engine.collect(repository, grace=seconds, kept=kept, dry_run=dry_run, progress=progress, cancel=cancel)
    from vmcellar.cli.render.upkeep import gc_json, gc_text

    if as_json:
        print_json(gc_json(report))
    else:
        console().print(gc_text(report))


def consolidate(
    ctx: typer.Context,
    dry_run: DryRun = False,
    identity: IdentityOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put together what restores read in small pieces, and packs that are small; `vmcellar gc` frees the old ones.

    Works from the repository alone, touches no restore point, and is safe beside running backups. Stopped, it goes on
    with the next call.
    """
    with cancel_on_signals() as cancel, progress_counts() as progress:
        from vmcellar.upkeep import consolidate as engine

        repository = open_repository(ctx, config, identity)
        report = engine.consolidate(repository, dry_run=dry_run, progress=progress, cancel=cancel)
    from vmcellar.cli.render.upkeep import consolidate_json, consolidate_text

    if as_json:
        print_json(consolidate_json(report))
    else:
        console().print(consolidate_text(report))


def rebuild_index(
    ctx: typer.Context,
    dry_run: DryRun = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the index again from the packs. Exit 1 when a pack could not be read; the rest is in the index then."""
    with cancel_on_signals() as cancel, progress_counts() as progress:
        from vmcellar.repository import rebuild
        from vmcellar.repository.repository import Repository

        repository = Repository.open(read_config(ctx, config), refresh=False)
        report = rebuild.rebuild_index(repository, progress, cancel, dry_run=dry_run)
    if as_json:
        from dataclasses import asdict

        print_json({**asdict(report), "dry_run": dry_run})
    else:
        for problem in report.damaged:
            console().print(f"DAMAGED: {problem}")
        said = "would be in the index" if dry_run else "are in the index"
        console().print(f"{report.objects} objects of {report.packs} packs {said}")
    if report.damaged:
        raise typer.Exit(1)
