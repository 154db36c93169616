"""`vmcellar files POINT ls|get|tar PATH`, and `shell`, which does as many of them as are typed."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmcellar.cli.leftout import tell_left_out
from vmcellar.cli.output import console, note, print_error
from vmcellar.cli.session import PANEL_WORK, ConfigOption, IdentityOption, JsonOption, config_path
from vmcellar.cli.signals import cancel_on_signals, leave_on_term
from vmcellar.errors import CancelledError, PermanentError, UsageError, VmcellarError

if TYPE_CHECKING:
    from vmcellar.guestfiles.inside import Inside
    from vmcellar.progress import CancelToken
    from vmcellar.restore.serve import Opening


class Action(StrEnum):
    """What is done with the path."""

    ls = "ls"
    get = "get"
    tar = "tar"
    shell = "shell"


SHELL_USE = "ls [PATH], get PATH [TO], or tar PATH FILE, with quotes as in a shell; end with Ctrl-D"


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel=PANEL_WORK)(files)


def files(
    ctx: typer.Context,
    point: Annotated[str, typer.Argument(metavar="POINT", help="A point's id, a unique prefix of it, or VM@latest.")],
    action: Annotated[Action, typer.Argument(help="List it, copy it out, write it as a tar, or do as stdin says.")],
    path: Annotated[
        str | None,
        typer.Argument(metavar="[PATH]", help="/PATH in the guest, or FILESYSTEM:/PATH; `ls` without one names them."),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Argument(metavar="[TO]", help="Where it goes: for get, else this folder; for tar a file, else stdout."),
    ] = None,
    disk: Annotated[list[str] | None, typer.Option(metavar="TARGET", help="Only this disk; may be repeated.")] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="The passphrase of an encrypted partition or volume; may be repeated."),
    ] = None,
    identity: IdentityOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Files out of a guest's disks, read-only: ext4, XFS, Btrfs, NTFS, LVM and whatever else libguestfs knows.

    Owners, modes, times, holes, links, extended attributes and ACLs are kept. Takes 3 to 20 s to begin; `shell` begins
    once and then does each line that it reads: ls [PATH], get PATH [TO], tar PATH FILE.
    """
    if action is Action.shell and path is not None:
        raise UsageError("shell takes no path: it reads its commands from stdin", hint=SHELL_USE)
    if action is Action.tar and to is None and path is not None and sys.stdout.isatty():
        raise UsageError("an archive is nothing to show on a terminal", hint="name a file, or pipe it")
    if action is not Action.shell:
        _check(action, path, to)
    from vmcellar.cli.keyfiles import read_private
    from vmcellar.restore.serve import Opening

    keys = _passphrases(key or [])
    opening = Opening(config_path(ctx, config), read_private(identity) if identity else None)
    if action is Action.shell:
        with leave_on_term(), opened(opening, point, tuple(disk or ())) as inside:
            inside.unlock(keys)
            _shell(inside, as_json)
        return
    with cancel_on_signals() as cancel, opened(opening, point, tuple(disk or ())) as inside:
        inside.unlock(keys)
        _do(inside, action, path, to, cancel, as_json)


def _check(action: Action, path: str | None, to: Path | None) -> None:
    """UsageError for words that mean nothing, before anything is opened."""
    if path is None and action is not Action.ls:
        raise UsageError(f"{action} needs a path", hint="`ls` without a path names the file systems")
    if to is not None and action is Action.ls:
        raise UsageError("ls takes one path")
    _parted(path or "")


def _do(inside: Inside, action: Action, path: str | None, to: Path | None, cancel: CancelToken, as_json: bool) -> None:
    """One of them, where nothing is mounted yet."""
    if path is None:
        _show_file_systems(inside, as_json)
        return
    name, inner = _parted(path)
    inside.mount(name)
    if action is Action.ls:
        _show_entries(inside, inner, as_json)
    elif action is Action.get:
        _get(inside, inner, to, cancel)
    else:
        _tar(inside, inner, to, cancel)


def _shell(inside: Inside, as_json: bool) -> None:
    """Each line of stdin, whatever became of those before it. PermanentError at the end when any failed and nobody at a
    terminal saw it.
    """
    asks = sys.stdin.isatty()
    if asks:
        note(SHELL_USE)
    failed = 0
    while line := _line(asks):
        try:
            with cancel_on_signals() as cancel:
                _one(inside, line, cancel, as_json)
        except (VmcellarError, OSError) as error:
            if isinstance(error, CancelledError) and not asks:
                raise  # whoever stops a script means all of it; at the prompt, this line
            print_error(error if isinstance(error, VmcellarError) else PermanentError(str(error)))
            failed += 1
        sys.stdout.flush()
    if failed and not asks:
        raise PermanentError(f"{failed} of the commands failed", hint="what was wrong stands above")


def _line(asks: bool) -> str:
    """The next line with its end, empty at the end of the file. Ctrl-C ends the process as it does any program."""
    if asks:
        sys.stderr.write("files> ")
        sys.stderr.flush()
    return sys.stdin.readline()


def _one(inside: Inside, line: str, cancel: CancelToken, as_json: bool) -> None:
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UsageError(f"{line.strip()}: {error}", hint=SHELL_USE) from error
    if not words:
        return
    known = words[0] in (Action.ls, Action.get, Action.tar)
    if not known or len(words) > 3 or (words[0] == Action.tar and len(words) != 3):
        raise UsageError(f"{line.strip()} is none of these commands", hint=SHELL_USE)
    action, path, to = Action(words[0]), words[1] if words[1:] else None, Path(words[2]) if words[2:] else None
    _check(action, path, to)
    inside.unmount()
    _do(inside, action, path, to, cancel, as_json)


@contextmanager
def opened(opening: Opening, point: str, targets: tuple[str, ...]) -> Iterator[Inside]:
    """The point's disks, served over NBD and opened in libguestfs's appliance."""
    from vmcellar.config import load_config
    from vmcellar.guestfiles.inside import Inside, sector_sizes
    from vmcellar.guestfiles.library import check_installed
    from vmcellar.repository.repository import Repository
    from vmcellar.restore.plan import chosen_disks
    from vmcellar.restore.serve import Address, Server

    check_installed()
    with ExitStack() as stack:
        repository = Repository.open(load_config(opening.config), opening.private)
        stack.callback(repository.close)
        found = repository.point(point)
        tell_left_out(found)
        disks = chosen_disks(found, targets)
        socket = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vmcellar-files-"))) / "nbd.sock"
        xml = next((repository.artifact(one) for one in found.artifacts if one.name == "domain.xml"), b"<domain/>")
        stack.enter_context(Server(repository, opening, found, disks, Address(socket)))
        names = tuple(one.target for one in disks)
        yield stack.enter_context(Inside(f"{found.vm}, point {found.id}", socket, names, sector_sizes(xml.decode())))


def _passphrases(given: list[str]) -> dict[str, bytes]:
    """NAME=FILE each: passphrases by name."""
    from vmcellar.cli.keyfiles import read_passphrase

    found = {}
    for each in given:
        name, equals, file = each.partition("=")
        if not (name and equals and file):
            raise UsageError(f"--key {each} is not NAME=FILE", hint="such as --key vda2=/root/web1.passphrase")
        found[name] = read_passphrase(Path(file))
    return found


def _parted(path: str) -> tuple[str, bytes]:
    """FILESYSTEM:/PATH in two; no file system for /PATH."""
    if path.startswith("/") or not path:
        return "", os.fsencode(path)
    name, colon, inner = path.partition(":")
    if not colon or not (inner.startswith("/") or not inner):
        raise UsageError(f"{path} does not begin with /", hint="paths are /PATH, or FILESYSTEM:/PATH such as vda1:/etc")
    return name, os.fsencode(inner or "/")


def _show_file_systems(inside: Inside, as_json: bool) -> None:
    found = inside.file_systems()
    if as_json:
        _print_json([{"name": one.name, "type": one.kind, "label": one.label} for one in found])
        return
    width = max((len(one.name) for one in found), default=0)
    for one in found:
        remark = "  (encrypted)" if one.locked else ""
        console().out(f"{one.name:{width}}  {one.kind}  {one.label}{remark}".rstrip())
    if not found:
        note("nothing that is known is on these disks")


def _show_entries(inside: Inside, path: bytes, as_json: bool) -> None:
    from vmcellar.guestfiles.listing import list_path

    found = list_path(inside.guestfs, path)
    if as_json:
        _print_json(
            [
                {
                    "name": os.fsdecode(one.name),
                    "mode": one.mode_words,
                    "uid": one.uid,
                    "gid": one.gid,
                    "size": one.size,
                    "mtime_ns": one.mtime,
                    "link": os.fsdecode(one.link),
                }
                for one in found
            ]
        )
        return
    from vmcellar.cli.render.guestfiles import entry_lines

    for line in entry_lines(found):
        console().out(line)


def _get(inside: Inside, path: bytes, to: Path | None, cancel: CancelToken) -> None:
    from vmcellar.guestfiles.fetch import get

    place, left_out = get(inside.guestfs, path, to, cancel)
    if left_out:
        note(f"{left_out} device nodes were left out")
    if os.geteuid() != 0:
        note("owners are not kept, as you are not root")
    note(f"copied to {place}")


def _tar(inside: Inside, path: bytes, to: Path | None, cancel: CancelToken) -> None:
    from vmcellar.guestfiles.fetch import archive

    if to is None:
        archive(inside.guestfs, path, sys.stdout.fileno(), cancel)
        return
    with to.open("xb") as file:
        try:
            archive(inside.guestfs, path, file.fileno(), cancel)
        except BaseException:
            to.unlink()
            raise


def _print_json(value: object) -> None:
    """With escapes alone: names that are no text come as lone surrogates, which Python's os.fsencode turns back."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
