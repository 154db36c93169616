"""`vmcellar restore POINT (--to DIR | --define NAME | --onto DISK | --in-place)`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vmcellar.cli.bars import progress_bars
from vmcellar.cli.leftout import tell_left_out
from vmcellar.cli.ontorun import Reach, overwrite
from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import PANEL_WORK, ConfigOption, IdentityOption, JsonOption, open_repository, read_config
from vmcellar.cli.signals import cancel_on_signals
from vmcellar.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmcellar.config.prices import Prices
    from vmcellar.repository.points import RestorePoint
    from vmcellar.repository.repository import Repository
    from vmcellar.restore.as_thawed import Waiting

IMAGES = Path("/var/lib/libvirt/images")
"""Where a defined VM's images go without --to: libvirt's own place for them."""


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel=PANEL_WORK)(restore)


def restore(
    ctx: typer.Context,
    point: Annotated[str, typer.Argument(metavar="POINT", help="A point's id, a unique prefix of it, or VM@latest.")],
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write DIR/<target>.<format> and DIR/domain.xml.")
    ] = None,
    image_format: Annotated[
        Literal["qcow2", "raw"] | None,
        typer.Option("--format", help="Format of the images, qcow2 unless told; with --onto, that of the disk there."),
    ] = None,
    prealloc: Annotated[
        Literal["off", "metadata", "falloc", "full"],
        typer.Option(help="What of new images takes space from the start; metadata is of qcow2 alone."),
    ] = "off",
    cluster: Annotated[
        str, typer.Option(metavar="SIZE", help="Cluster size of new qcow2 images, 4KiB to 2MiB.")
    ] = "64KiB",
    define: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"Define a new VM; images go to --to, else {IMAGES}/NAME.")
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(metavar="HOW", help="With --define: isolated, keep, or OLD=NEW for each network to be replaced."),
    ] = None,
    onto: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[TARGET=]DISK",
            help="Overwrite what differs on a disk that is there: a path, rbd:POOL/IMAGE or vol:POOL/NAME; repeatable.",
        ),
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Make the VM itself what it was; it must be off.")
    ] = False,
    stop: Annotated[
        bool, typer.Option("--stop", help="With --in-place: back up a VM that runs, shut it down, then restore it.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep/--no-keep", help="With --in-place: copy images of a VM that is off first.")
    ] = True,
    definition: Annotated[bool, typer.Option("--definition", help="With --in-place: its XML, too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Overwrite without asking.")] = False,
    disk: Annotated[list[str] | None, typer.Option(metavar="TARGET", help="Only this disk; may be repeated.")] = None,
    best_effort: Annotated[bool, typer.Option(help="Restore what can be read, and list what is lost.")] = False,
    readable: Annotated[
        bool, typer.Option("--readable", help="Write what is thawed by now; the same command goes on later.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only check everything and say what would be done.")] = False,
    identity: IdentityOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a point back: as images in a folder, as a new VM, onto disks that are there, or in place.

    Existing files and VMs are never touched, but by --onto and --in-place. Everything is found and checked before the
    first byte is written. Exit 1 when anything was lost.
    """
    if in_place and not plan:
        from vmcellar.cli.inplacerun import overwrite_vm
        from vmcellar.restore.in_place import Wishes

        others = {"--to": to, "--define": define, "--disk": disk, "--best-effort": best_effort, "--onto": onto}
        others["--readable"] = readable
        _refuse_beside("--in-place", others)
        overwrite_vm(ctx, point, Wishes(stop, keep, definition), Reach(config, identity, as_json, yes))
        return
    if onto and not plan:
        others = {"--to": to, "--define": define, "--disk": disk, "--best-effort": best_effort, "--readable": readable}
        _refuse_beside("--onto", others)
        overwrite(ctx, point, onto, image_format, Reach(config, identity, as_json, yes))
        return
    folder = to or (IMAGES / define if define else None)
    if folder is None and not plan:
        raise UsageError("where to? Neither --to DIR nor --define NAME was given", hint="or look first, with --plan")
    from vmcellar.restore.domain_xml import parse_networks
    from vmcellar.restore.targets import ImageOptions

    plugs = parse_networks(network or ())
    image = ImageOptions(image_format or "qcow2", prealloc, _cluster_bytes(cluster))
    repository = open_repository(ctx, config, identity)
    found = repository.point(point)
    tell_left_out(found)
    if plan or folder is None:
        prices = read_config(ctx, config).price_tables()
        _show_plan(repository, found, tuple(disk or ()), best_effort, prices, as_json)
        return
    from vmcellar.restore.bring_back import Done, Wanted, run_as_thawed, run_restore

    wanted = Wanted(
        folder.absolute(), image.format, tuple(disk or ()), best_effort, define, prealloc, image.cluster, plugs
    )
    with cancel_on_signals() as cancel, progress_bars() as progress:
        run = run_as_thawed if readable else run_restore
        done = run(repository, found, wanted, read_config(ctx, config).libvirt.uri, progress, cancel)
    if readable:
        from vmcellar.upkeep.pins import while_it_waits

        holder = f"restore --readable {os.uname().nodename}:{wanted.folder}"
        problem = while_it_waits(repository, found, holder, waits=not isinstance(done, Done))
        if problem:
            note(f"note: {problem}")
    if not isinstance(done, Done):
        _show_waiting(done, as_json)
        return
    if as_json:
        from vmcellar.cli.render.restores import report_json

        print_json(report_json(done))
    else:
        from vmcellar.cli.render.restores import report_text

        console().print(report_text(done))
    if done.report.lost:
        raise typer.Exit(1)


def _show_waiting(waiting: Waiting, as_json: bool) -> None:
    from vmcellar.cli.render.text import size_text

    if as_json:
        fields = {"point": waiting.point, "vm": waiting.vm, "directory": str(waiting.directory)}
        print_json(fields | {"asleep": list(waiting.asleep), "written": waiting.written, "data": waiting.data})
        return
    written = f"{size_text(waiting.written)} of {size_text(waiting.data)} are written"
    note(
        f"{written}; {len(waiting.asleep)} packs are asleep:"
        f" `vmcellar thaw {waiting.point} --rest-of {waiting.directory}` asks for them; then repeat this command"
    )


def _cluster_bytes(text: str) -> int:
    from vmcellar.config.units import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(f"--cluster {text}: {error}") from error


def _refuse_beside(chosen: str, options: Mapping[str, object]) -> None:
    for name, value in options.items():
        if value:
            raise UsageError(f"{chosen} and {name} were both given", hint="choose one of them")


def _show_plan(
    repository: Repository,
    point: RestorePoint,
    disks: tuple[str, ...],
    best_effort: bool,
    prices: Mapping[str, Prices],
    as_json: bool,
) -> None:
    from vmcellar.cli.render.restores import plan_json, plan_text
    from vmcellar.cli.render.thaws import thaw_json, thaw_text
    from vmcellar.restore.plan import make_plan
    from vmcellar.restore.thaw import DAYS, plan_thaw

    with cancel_on_signals() as cancel:
        found = make_plan(repository, point, disks, best_effort, cancel)
    thaw = plan_thaw(repository, found, prices, DAYS)
    if as_json:
        print_json({**plan_json(found), "thaw": thaw_json(thaw) if thaw.waits else None})
    else:
        console().print(plan_text(found))
        if thaw.waits:
            console().print(thaw_text(thaw))
            note(f"to be thawed first: vmcellar thaw {point.id}; nothing was requested")
    if found.lost:
        note("some of it cannot be restored; see above")
        raise typer.Exit(1)
