"""`vmcellar verify [POINT|--all] [--deep] [--sample 5%] [--repair --from STORAGE]`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmcellar.cli.bars import progress_bars
from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import PANEL_LOOK, ConfigOption, IdentityOption, JsonOption, open_repository, read_config
from vmcellar.cli.signals import cancel_on_signals
from vmcellar.errors import UsageError

if TYPE_CHECKING:
    from vmcellar.repository.repair import RepairReport
    from vmcellar.repository.repair_keys import KeysReport
    from vmcellar.repository.repository import Repository
    from vmcellar.repository.scrub import ScrubReport
    from vmcellar.repository.scrub_sample import Sample, Taken
    from vmcellar.tiers.base import Tier


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel=PANEL_LOOK)(verify)


def verify(
    ctx: typer.Context,
    point: Annotated[
        str | None, typer.Argument(metavar="[POINT]", help="A point's id, a unique prefix of it, or VM@latest.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Check every point and all that is stored.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte back, decrypt and compare it.")] = False,
    sample: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE", help="With --all: a share of the points, with --deep of the packs; oldest first."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="With --sample: the seed that an earlier run printed.")] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Replace what is damaged or missing by whole copies.")
    ] = False,
    source: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="STORAGE", help="With --repair: a copy of the repository, or the name of another tier."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --repair: check the copies, change nothing.")
    ] = False,
    identity: IdentityOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check what is stored, and name the points and disk ranges that damage touches. Exit 1 when there is any.

    With --repair, damaged and missing objects are replaced from a copy of the repository, each only after the copy was
    read and checked in full; exit 1 when damage is left. Naming a POINT that is gone brings it back.
    """
    if (point is None) != every:
        raise UsageError("name one point, or give --all", hint="such as: vmcellar verify web1@latest --deep")
    if sample is not None and not every:
        raise UsageError("--sample goes with --all", hint="such as: vmcellar verify --all --deep --sample 5%")
    if sample is not None and repair and not deep:
        raise UsageError("--repair with --sample needs --deep", hint="without --deep all points are checked anyway")
    if repair != (source is not None) or (dry_run and not repair):
        raise UsageError(
            "--repair and --from go together; --dry-run goes with them",
            hint="such as: vmcellar verify --all --deep --repair --from /mnt/copy",
        )
    keys = _mend_keys(ctx, config, identity, source, dry_run=dry_run) if source else None
    with cancel_on_signals() as cancel, progress_bars() as progress:
        repository = open_repository(ctx, config, identity)
        picked = _sample(repository, sample, seed)
        if source is not None:
            from vmcellar.repository import repair as repairs

            copy, wanted = _copy(repository.tier, repository.cache_dir.parent, source), _point_id(repository, point)
            request = repairs.RepairRequest(wanted, deep, _choice(picked), dry_run)
            mended = repairs.repair(repository, copy, request, progress, cancel)
            if keys is not None:
                mended = replace(
                    mended,
                    repaired=(*keys.repaired, *mended.repaired),
                    not_repaired=(*keys.not_repaired, *mended.not_repaired),
                )
            report = mended.after
        else:
            from vmcellar.repository import scrub

            mended = None
            if point is None:
                report = scrub.verify_all(
                    repository,
                    deep=deep,
                    choose=_choice(picked),
                    some=_points(picked, deep),
                    progress=progress,
                    cancel=cancel,
                )
            else:
                found = repository.point(point)
                report = scrub.verify_point(repository, found, deep=deep, progress=progress, cancel=cancel)
    if picked is not None:
        picked.done()
    _print(report, deep, mended, picked.taken if picked else None, as_json=as_json)
    would = dry_run and mended is not None and mended.repaired
    if not report.ok or would or (keys is not None and keys.not_repaired):
        raise typer.Exit(1)


def _sample(repository: Repository, share: str | None, seed: int | None) -> Sample | None:
    if share is None:
        return None
    from vmcellar.repository.scrub_sample import Sample, parse_share

    return Sample.of(repository, parse_share(share), seed)


def _choice(picked: Sample | None) -> Any:
    return list if picked is None else picked.packs


def _points(picked: Sample | None, deep: bool) -> Any:
    """A deep sample walks all points: what it finds is told for all that it touches."""
    if picked is None or deep:
        return list
    return lambda points: picked.pick("point", points, lambda point: point.id)


def _mend_keys(
    ctx: typer.Context, chosen: Path | None, identity: Path | None, source: str, *, dry_run: bool
) -> KeysReport:
    """What is needed to open the repository at all, before it is opened; told at once, should it not open even so."""
    from vmcellar.cli.keyfiles import read_private
    from vmcellar.cli.render.scrub import mended_lines
    from vmcellar.repository.repair_keys import repair_keys
    from vmcellar.repository.repository import passphrase_of
    from vmcellar.tiers.cellar import CellarTier
    from vmcellar.tiers.registry import open_tiers

    config = read_config(ctx, chosen)
    key = passphrase_of(config) if identity is None else read_private(identity)
    tier = open_tiers(config)
    hot = tier.hot if isinstance(tier, CellarTier) else tier  # which alone has them
    report = repair_keys(hot, _copy(tier, config.state, source), key, dry_run=dry_run)
    for line in mended_lines(report.repaired, report.not_repaired, dry_run=dry_run):
        note(line)
    return report


def _copy(tier: Tier, state: Path, source: str) -> Tier:
    from vmcellar.config.tiers import TierSettings
    from vmcellar.tiers.cellar import CellarTier
    from vmcellar.tiers.registry import open_tier

    if isinstance(tier, CellarTier) and source in tier.names[1:]:
        return tier.tier_named(source)
    try:
        settings = TierSettings(storage=source)
    except ValueError as error:
        raise UsageError(f"--from {source}: no storage", hint="a directory, ceph::pool or s3://bucket") from error
    return open_tier("copy", settings, state)


def _point_id(repository: Repository, point: str | None) -> str | None:
    """The id that is meant; a whole id may name a point that is gone or cannot be read."""
    from vmcellar.repository.points import is_point_id

    return point if point is None or is_point_id(point) else repository.point(point).id


def _print(report: ScrubReport, deep: bool, mended: RepairReport | None, taken: Taken | None, *, as_json: bool) -> None:
    if as_json:
        found: dict[str, Any] = {**asdict(report), "ok": report.ok, "deep": deep}
        if taken is not None:
            found["sample"] = asdict(taken)
        if mended is not None:
            found["repair"] = {name: value for name, value in asdict(mended).items() if name != "after"}
        print_json(found)
        return
    from vmcellar.cli.render.scrub import repair_text, sample_text, scrub_text

    if taken is not None:
        console().print(sample_text(taken))
    if mended is not None:
        console().print(repair_text(mended))
    console().print(scrub_text(report, deep))
