"""`vmcellar catalog rebuild`, `copy`, `export` and `show`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import PANEL_LOOK, ConfigOption, JsonOption, open_repository, read_config
from vmcellar.errors import IntegrityError, VmcellarError

if TYPE_CHECKING:
    from vmcellar.catalog.catalog import Catalog
    from vmcellar.catalog.rebuild import RebuildReport
    from vmcellar.repository.repository import Repository

group = typer.Typer(help="The history of backups: rebuild it from the repository, export it, show what it holds.")


def register(app: typer.Typer) -> None:
    """Add the group to the app."""
    app.add_typer(group, name="catalog", rich_help_panel=PANEL_LOOK, no_args_is_help=True)


def open_catalog(ctx: typer.Context, config: Path | None) -> tuple[Repository, Catalog]:
    """The repository and the catalog of its history."""
    from vmcellar.catalog.catalog import Catalog

    repository = open_repository(ctx, config)
    return repository, Catalog.of(read_config(ctx, config), repository.id)


def look_at_segments(catalog: Catalog, now: float) -> None:
    """Judge disks by their segments, as every look at the history begins; a catalog that takes no writes (a standby, a
    role that may only read, a full disk, another writer) may be looked at without that, which is said.
    """
    from vmcellar.catalog.agreement import judge_segments

    try:
        judge_segments(catalog, now)
    except VmcellarError as error:
        note(f"new runs were not compared with their segments: {error.message}")


@group.command()
def rebuild(ctx: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Add to the catalog what the repository's points and evidence tell, and note which points are gone.

    A point that is damaged is named, and makes the exit code 1 after all others were read. Nothing is deleted, and what
    runs wrote themselves stays. What no point holds is not there afterwards: runs that failed, the stages' times per
    disk (points have their sums), segments and retries.
    """
    from dataclasses import asdict

    from vmcellar.catalog.rebuild import refresh

    repository, catalog = open_catalog(ctx, config)
    report = refresh(catalog, repository)
    if as_json:
        print_json(asdict(report))
    else:
        _tell(report)
    if report.unreadable:
        raise IntegrityError(
            "; ".join(f"{point}: {problem}" for point, problem in sorted(report.unreadable.items())),
            hint="the catalog keeps what it knew of these points; `vmcellar verify --all` tells what else is damaged",
        )


def _tell(report: RebuildReport) -> None:
    note(f"{report.points} points in the repository: {report.added} added to the catalog, {report.gone} noted as gone")
    note(f"{report.evidence} verifications and drills added")
    if report.added:
        note("of runs that were added, failed attempts, segments and the stages' times per disk are not known")


@group.command()
def copy(
    ctx: typer.Context,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="PLACE",
            help="A file, or postgresql://USER@HOST/DATABASE with its password in ~/.pgpass; "
            "else catalog.sqlite in the state directory.",
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy this repository's rows of another catalog to the one that `catalog:` names, as when moving to a server.

    What is there already stays as it is, but for runs of which only their points told. May be stopped at any time and
    typed again; the other catalog keeps its rows.
    """
    from dataclasses import asdict

    from vmcellar.catalog import copying
    from vmcellar.catalog.databases import FILE

    _, target = open_catalog(ctx, config)
    place = copying.place_of(source or str(read_config(ctx, config).state / FILE))
    done = copying.copy(copying.open_source(place, target), target)
    if as_json:
        print_json({"from": place.name, "to": target.name, **asdict(done)})
        return
    added = ", ".join(f"{count} {name}" for name, count in sorted(done.added.items())) or "nothing"
    note(f"copied from {place.name} to {target.name}: {added}")
    note(f"{done.there} rows were there already, {done.other} of them otherwise; they stay as they are there")
    if done.better:
        note(f"of {done.better} runs only their points had told; now there is what the runs wrote themselves")


@group.command()
def export(
    ctx: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the files; made if missing.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the history as Parquet files, for pandas, DuckDB, Spark and others; docs/catalog.md names the columns."""
    from vmcellar.analysis.exports import export as write

    _, catalog = open_catalog(ctx, config)
    rows = write(catalog, directory)
    if as_json:
        print_json({"directory": str(directory), "rows": rows})
        return
    for name, count in rows.items():
        note(f"{directory / name}.parquet: {count} rows")


@group.command()
def show(ctx: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show which runs the catalog holds, by VM, and which rows of it no analysis will use, and why."""
    import pandas as pd

    from vmcellar.analysis.history import in_parts
    from vmcellar.analysis.overview import overview
    from vmcellar.analysis.quality import quarantine
    from vmcellar.cli.render.catalog import bad_table, overview_json, overview_table

    _, catalog = open_catalog(ctx, config)
    look_at_segments(catalog, time.time())
    vms, parts = [], []
    for part in in_parts(catalog):
        vms += overview(part)
        parts.append(quarantine(part)[1])
    bad = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if as_json:
        print_json(overview_json(catalog, vms, bad))
        return
    note(f"{catalog.name}: " + ", ".join(f"{count} {name}" for name, count in catalog.counts().items() if count))
    if vms:
        console().print(overview_table(vms))
    else:
        note("no run is known; `vmcellar catalog rebuild` reads them back from the repository")
    if len(bad):
        console().print(bad_table(bad))
