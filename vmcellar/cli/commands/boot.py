"""`vmcellar boot POINT`, and what is to be done about VMs that it began."""

from __future__ import annotations

import sys
import uuid
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmcellar.cli.bars import progress_bars
from vmcellar.cli.commands.restore import IMAGES
from vmcellar.cli.leftout import tell_left_out
from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import PANEL_WORK, ConfigOption, IdentityOption, JsonOption, config_path
from vmcellar.cli.signals import cancel_on_signals
from vmcellar.errors import CancelledError, UsageError, VmcellarError

if TYPE_CHECKING:
    from vmcellar.config import Config
    from vmcellar.repository.repository import Repository
    from vmcellar.restore.boot import Booter
    from vmcellar.restore.boot_journal import Boot, BootJournal
    from vmcellar.restore.serve import Opening

PIN_NOTE = "a VM runs from it: vmcellar boot"


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel=PANEL_WORK)(boot)


def boot(
    ctx: typer.Context,
    point: Annotated[str | None, typer.Argument(metavar="POINT", help="A point's id, a prefix, or VM@latest.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the new VM; else that of the old one with -boot.")] = None,
    to: Annotated[Path | None, typer.Option(metavar="DIR", help=f"Where its disks go; else {IMAGES}/NAME.")] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(metavar="HOW", help="isolated, keep, or OLD=NEW for each network to be replaced."),
    ] = None,
    status: Annotated[bool, typer.Option("--status", help="Show VMs that still need the repository.")] = False,
    finish: Annotated[str | None, typer.Option(metavar="NAME", help="Go on with a VM that was left.")] = None,
    abort: Annotated[str | None, typer.Option(metavar="NAME", help="Remove such a VM and all it wrote.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Abort without asking.")] = False,
    identity: IdentityOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Instant restore: start a new VM straight from the repository; its disks come over while it runs.

    The command ends when the VM needs the repository no more. Stopped before that, it leaves the VM as it is: --finish
    goes on, and nothing that its guest wrote is lost.
    """
    if sum(map(bool, (point, status, finish, abort))) != 1:
        raise UsageError("one of POINT, --status, --finish and --abort is needed, and only one")
    if status:
        _show(ctx, config, as_json)
        return
    if abort and not yes:
        _ask(abort)
    with ExitStack() as stack:
        settings, repository, booter = _open(ctx, config, identity, network or [], stack)
        if abort:
            from vmcellar.restore.boot_journal import go_on

            journal = stack.enter_context(go_on(settings.state, abort))
            booter.abort(journal)
            unpin_after_boot(settings, repository, journal.entry)
            note(f"VM {abort} and its images were removed")
            return
        journal = stack.enter_context(_journal(settings, repository, point, finish, name, to))
        tell_left_out(repository.point(journal.entry.point))
        pin_for_boot(repository, journal.entry)
        try:
            _go(booter, journal, as_json)
        finally:
            unpin_after_boot(settings, repository, journal.entry)


def _open(
    ctx: typer.Context, config: Path | None, identity: Path | None, network: list[str], stack: ExitStack
) -> tuple[Config, Repository, Booter]:
    from vmcellar.cli.keyfiles import read_private
    from vmcellar.config import load_config
    from vmcellar.repository.repository import Repository
    from vmcellar.restore.boot import Booter
    from vmcellar.restore.domain_xml import parse_networks
    from vmcellar.restore.serve import Opening
    from vmcellar.sources.libvirt_connection import Connection
    from vmcellar.sources.libvirt_uri import refuse_other_host

    opening: Opening = Opening(config_path(ctx, config), read_private(identity) if identity else None)
    settings = load_config(opening.config)
    repository = Repository.open(settings, opening.private)
    stack.callback(repository.close)
    refuse_other_host(settings.libvirt.uri, "booting a VM from the repository")
    connection = Connection(settings.libvirt.uri)
    stack.callback(connection.close)
    return settings, repository, Booter(repository, opening, connection, parse_networks(network))


def _journal(
    settings: Config, repository: Repository, point: str | None, finish: str | None, name: str | None, to: Path | None
) -> AbstractContextManager[BootJournal]:
    """The entry of a VM that is begun, or gone on with."""
    from vmcellar.restore.boot_journal import begin, go_on, new_entry
    from vmcellar.restore.define import check_name_free
    from vmcellar.sources.libvirt_connection import Connection

    if finish:
        return go_on(settings.state, finish)
    found = repository.point(point or "")
    chosen = name or f"{found.vm}-boot"
    folder = (to or IMAGES / chosen).absolute()
    check_name_free(Connection(settings.libvirt.uri), chosen)
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty", hint="name a new folder with --to")
    targets = tuple(disk.target for disk in found.disks)
    return begin(settings.state, new_entry(chosen, str(uuid.uuid4()), found.id, found.vm, folder, targets))


def pin_for_boot(repository: Repository, entry: Boot) -> None:
    """No retention drops the point while the VM needs it, also when this process dies. A mirror cannot be written."""
    from vmcellar.upkeep import pins

    try:
        pins.hold(repository, repository.point(entry.point), _holder(entry), f"{PIN_NOTE} {entry.name}")
    except VmcellarError as error:
        note(
            f"note: point {entry.point} is not pinned, so keep prune from it until the VM is finished: {error.message}"
        )


def unpin_after_boot(settings: Config, repository: Repository, entry: Boot) -> None:
    """Unless the VM still needs it. What another VM needs, here or elsewhere, that one holds by itself."""
    from vmcellar.restore.boot_journal import all_boots
    from vmcellar.upkeep import pins

    if any(other.uuid == entry.uuid for other in all_boots(settings.state)):
        return
    try:
        pins.let_go(repository, entry.point, _holder(entry))
    except VmcellarError as error:
        note(f"note: point {entry.point} stays pinned (`vmcellar pin {entry.point} --remove`): {error.message}")


def _holder(entry: Boot) -> str:
    return f"boot {entry.uuid}"


def _go(booter: Booter, journal: BootJournal, as_json: bool) -> None:
    name = journal.entry.name

    def started(seconds: float) -> None:
        note(f"VM {name} runs after {seconds:.1f} s; its disks come over to {journal.entry.folder}")

    try:
        with cancel_on_signals() as cancel, progress_bars() as progress:
            report = booter.go(journal, started, progress, cancel)
    except CancelledError:
        note(f"VM {name} still needs the repository and pauses without it: vmcellar boot --finish {name}")
        raise
    if as_json:
        print_json(asdict(report))
    else:
        state = "runs" if report.runs else "is off"
        console().print(f"VM {name} {state} on disks of its own in {report.folder}; the repository is not needed now")


def _show(ctx: typer.Context, config: Path | None, as_json: bool) -> None:
    from vmcellar.config import load_config
    from vmcellar.restore.boot_journal import all_boots, is_served

    state = load_config(config_path(ctx, config)).state
    found = [{**asdict(entry), "served": is_served(state, entry.name)} for entry in all_boots(state)]
    if as_json:
        print_json(found)
        return
    for one in found:
        how = "being served" if one["served"] else f"left: vmcellar boot --finish {one['name']}, or --abort"
        console().print(f"{one['name']}  {one['phase']}  point {one['point']}  {one['folder']}  {how}", soft_wrap=True)
    if not found:
        console().print("no VM runs from the repository")


def _ask(name: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError("--abort removes a VM and what it wrote, and nobody can be asked here", hint="give --yes")
    if typer.prompt(f"Type {name} to remove it with all that its guest wrote", err=True) != name:
        raise UsageError(f"that is not {name}: nothing was removed")
