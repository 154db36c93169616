"""`vmcellar tiers`, `tiers move`, `tiers add` and `tiers promote`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vmcellar.cli.bars import progress_bars
from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import PANEL_LOOK, ConfigOption, IdentityOption, JsonOption, open_repository, read_config
from vmcellar.cli.signals import cancel_on_signals
from vmcellar.errors import UsageError, VmcellarError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmcellar.analysis.capacity import DaysToFull
    from vmcellar.config import Config
    from vmcellar.repository.repository import Repository
    from vmcellar.upkeep.tierstat import TierSummary

tiers_app = typer.Typer(
    help="What lies on which tier, and moving it. Without a command: a table of all tiers.",
    invoke_without_command=True,
)


def register(app: typer.Typer) -> None:
    """Add the group to the app."""
    app.add_typer(tiers_app, name="tiers", rich_help_panel=PANEL_LOOK)


@tiers_app.callback()
def show(ctx: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """What lies on which tier: packs, bytes, age, cost per month, free space, days to full. Moves nothing.

    When a tier will be full is forecast from what backups store on it, as if nothing went again; `vmcellar capacity`
    says more about it. Exit 1 when a tier is away, or a pack that points need is lost.
    """
    if ctx.invoked_subcommand is not None:
        if config is not None:
            ctx.find_root().obj.config = config
        return
    with cancel_on_signals() as cancel:
        from vmcellar.upkeep.survey import survey
        from vmcellar.upkeep.tierstat import summaries

        settings, repository = read_config(ctx, config), open_repository(ctx, config)
        found = survey(repository, cancel=cancel)
        tiers = summaries(repository, found, settings.price_tables(), repository.clock())
    full = _days_to_full(settings, repository, tiers)
    from vmcellar.cli.render.tiers import tiers_json, tiers_text

    if as_json:
        print_json(tiers_json(found, tiers, full))
    else:
        console().print(tiers_text(found, tiers, full))
    if found.lost or found.away:
        raise typer.Exit(1)


def _days_to_full(settings: Config, repository: Repository, tiers: Sequence[TierSummary]) -> Mapping[str, DaysToFull]:
    """None while there is no history, or when it cannot be read: what lies where is told all the same."""
    from vmcellar.catalog.databases import database_of

    try:
        if database_of(settings).missing():
            return {}
        from vmcellar.analysis.capacity import days_to_full

        return days_to_full(settings, repository, tiers)
    except VmcellarError as error:
        note(f"when tiers will be full is not known: {error.message}")
        return {}


@tiers_app.command()
def move(
    ctx: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be moved, and why.")] = False,
    limit: Annotated[str | None, typer.Option(metavar="RATE", help="At most so much per second: 100MiB/s.")] = None,
    at_once: Annotated[int, typer.Option(min=1, max=64, metavar="N", help="Packs at the same time.")] = 4,
    identity: IdentityOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move packs to the tiers that `placement:` names, make missing copies, and bring the mirrors up to date.

    Each pack is copied, read back, and only then deleted where it was. Packs of which most has cooled are taken apart
    first. Stopped or killed, the next call goes on. Exit 1 when a pack could not be moved, or what points need is
    lost.
    """
    rate = _rate(limit)
    with cancel_on_signals() as cancel, progress_bars() as progress:
        from vmcellar.upkeep.rebalance import rebalance
        from vmcellar.upkeep.rules import rules_of

        rules = rules_of(read_config(ctx, config))
        repository = open_repository(ctx, config, identity)
        report = rebalance(
            repository, rules, at_once=at_once, rate=rate, dry_run=dry_run, progress=progress, cancel=cancel
        )
    from vmcellar.cli.render.tiers import moves_json, moves_text

    if as_json:
        print_json(moves_json(report))
    else:
        console().print(moves_text(report))
    if not report.ok:
        raise typer.Exit(1)


def _rate(text: str | None) -> int | None:
    from vmcellar.config.units import parse_rate

    if text is None:
        return None
    try:
        return parse_rate(text if text.endswith("/s") else f"{text}/s")
    except ValueError as error:
        raise UsageError(f"--limit {text}: {error}") from error


@tiers_app.command()
def add(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="warm or cold, as in the configuration.")],
    config: ConfigOption = None,
) -> None:
    """Begin to use a warm or cold tier: mark its empty place as this repository's (a directory is made if need be).

    Needed once for a tier that was added after `vmcellar init`, or whose place was lost and is new. Without the mark
    nothing is written there and nothing is read, as it may be a directory whose disk is not mounted.
    """
    from vmcellar.tiers.registry import add_tier

    places = read_config(ctx, config)
    if name not in places.other_tiers():
        raise UsageError(f"there is no tier {name} behind hot in the configuration", hint="add it under tiers: first")
    if add_tier(places, name):
        note(f"{name} is a tier of this repository; `vmcellar tiers move` fills it")
    else:
        note(f"{name} was a tier of this repository already")


@tiers_app.command()
def undelete(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="hot, warm or cold, as in the configuration.")],
    keys: Annotated[bool, typer.Option("--keys", help="Also what `vmcellar key` may have taken away.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only name what would be readable again.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make readable again what somebody deleted or wrote over on a tier that locks its objects.

    S3 keeps a locked version below a delete marker or a newer version; those are removed.
    """
    from vmcellar.tiers.base import Locks
    from vmcellar.tiers.registry import open_tier

    places = read_config(ctx, config)
    settings = {"hot": places.hot_tier(), **places.other_tiers()}.get(name)
    if settings is None:
        raise UsageError(f"there is no tier {name} in the configuration", hint="name one of those under tiers:")
    tier = open_tier(name, settings, places.state)
    hidden = tier.hidden(keys=keys) if isinstance(tier, Locks) and tier.lock_keep is not None else ()
    if isinstance(tier, Locks) and hidden and not dry_run:
        tier.undelete(hidden)
    if as_json:
        print_json({"tier": name, "undeleted": list(hidden), "dry_run": dry_run})
        return
    for key in hidden:
        console().print(key, highlight=False)
    note(f"{len(hidden)} objects of {name} {'would be' if dry_run else 'are'} readable again")


@tiers_app.command()
def promote(
    ctx: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", help="The hot tier is lost for good: do not ask.")] = False,
    config: ConfigOption = None,
) -> None:
    """Make a mirror the repository itself, when the hot tier is lost for good.

    Name the mirror's storage as `hot:` in the configuration first; until it is promoted it is read only, and enough to
    restore from. Whatever was on the lost tier alone stays lost: `vmcellar verify --all` names the points.
    """
    from vmcellar.tiers.mark import promote as promote_mirror
    from vmcellar.tiers.registry import open_tier

    settings = read_config(ctx, config)
    tier = open_tier("hot", settings.hot_tier(), settings.state)
    if not yes:
        typer.confirm(f"{tier!r} becomes the repository, and the old hot tier must never be used again?", abort=True)
    promote_mirror(tier)
    note("it is the repository now; next: vmcellar verify --all, then vmcellar backup")
