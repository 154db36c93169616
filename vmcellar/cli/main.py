"""The entry point: the app, its global options, and the one place where errors become words and exit codes.

Exit codes: 0 done, 1 failed, 2 bad use (command line or configuration), 130 stopped by a signal.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import vmcellar
from vmcellar.cli.commands import (
    advise,
    backup,
    boot,
    capacity,
    catalog,
    config,
    deploy,
    doctor,
    drain,
    drill,
    files,
    forecast,
    heat,
    init,
    jobs,
    keys,
    locks,
    metrics,
    points,
    prove,
    recover,
    restore,
    serve,
    slo,
    thaw,
    tiers,
    upkeep,
    verify,
    whatif,
)
from vmcellar.cli.leaving import (
    OutputLostError,
    drop_output,
    flush_output,
    guard_output,
    leave,
    open_closed_streams,
    speak_utf8,
)
from vmcellar.cli.output import json_wanted, print_error
from vmcellar.cli.session import GlobalOptions, set_up_logging
from vmcellar.cli.signals import EXIT_CANCELLED
from vmcellar.errors import PermanentError, UsageError, VmcellarError
from vmcellar.memory import collect_rarely

_BadUse: Any = typer.BadParameter.__base__
"""Click's error for a command line that it does not understand; Typer has a Click of its own, under no public name."""

app = typer.Typer(
    name="vmcellar",
    help="Live, incremental, verified backups of KVM virtual machines.",
    epilog="Exit codes: 0 done, 1 failed, 2 bad use, 130 stopped. `vmcellar COMMAND --help` says more.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"vmcellar {vmcellar.__version__}\n")
        raise typer.Exit


@app.callback()
def _global_options(
    ctx: typer.Context,
    config_file: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="Configuration file; commands take it too.")
    ] = None,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Say what is done; twice: everything.")
    ] = 0,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version
    set_up_logging(verbose)
    ctx.obj = GlobalOptions(config_file, verbose)


for module in (
    init,
    doctor,
    config,
    backup,
    restore,
    boot,
    thaw,
    serve,
    files,
    points,
    jobs,
    capacity,
    whatif,
    catalog,
    verify,
    tiers,
    prove,
    drill,
    slo,
    recover,
    locks,
    keys,
    upkeep,
    deploy,
    drain,
    forecast,
    heat,
    advise,
    metrics,
):
    module.register(app)


def main() -> None:
    """Run the command line; never returns."""
    speak_utf8()
    collect_rarely()  # before a command imports what it needs
    open_closed_streams()
    guard_output()
    try:
        _run()
    except SystemExit as stop:
        if _was_interrupted(stop):
            stop.code = EXIT_CANCELLED
        elif (lost := flush_output()) is not None:
            _say_lost(lost)
            stop.code = stop.code or PermanentError.exit_code
        leave(stop)
        raise


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind it, as at a prompt: click makes an Abort of that, and exits with 1."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _run() -> None:
    try:
        if json_wanted():
            _run_for_programs()
        app()
    except VmcellarError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except OutputLostError as error:
        _say_lost(error)
        sys.exit(PermanentError.exit_code)
    except OSError as error:
        print_error(_explained(error))
        sys.exit(PermanentError.exit_code)


def _run_for_programs() -> None:
    """With --json bad use is told as JSON too, which Click would print as a box with words."""
    try:
        code = app(standalone_mode=False)
    except _BadUse as error:
        print_error(UsageError(error.format_message(), hint="`vmcellar COMMAND --help` shows what it takes"))
        sys.exit(UsageError.exit_code)
    except typer.Abort:
        sys.exit(PermanentError.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def _say_lost(error: OutputLostError) -> None:
    """Why stdout could not be written; not a word when its reader went away, as `head` does."""
    drop_output()
    if error.errno != errno.EPIPE:
        hint = "make room where it goes, or send it elsewhere"
        print_error(PermanentError(f"standard output could not be written: {error.strerror}", hint=hint))


def _explained(error: OSError) -> PermanentError:
    if error.filename is None or error.strerror is None:
        return PermanentError(str(error))
    return PermanentError(
        f"{os.fsdecode(error.filename)}: {error.strerror}", hint="check this path, its permissions and its space"
    )


if __name__ == "__main__":
    main()
