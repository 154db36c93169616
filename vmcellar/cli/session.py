"""What every command shares: the options that all take, and the way from a configuration file to an open repository."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vmcellar.config import Config
    from vmcellar.engine import Engine
    from vmcellar.repository.repository import Repository

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Configuration; else $VMCELLAR_CONFIG, ./vmcellar.yaml, /etc/vmcellar/vmcellar.yaml.",
    ),
]
IdentityOption = Annotated[
    Path | None,
    typer.Option(
        "--identity",
        metavar="FILE",
        help="A recipient's private key, for repositories in recipient mode; its passphrase is asked, "
        "or taken from $VMCELLAR_IDENTITY_PASSPHRASE.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")]

PANEL_START = "Set up"
PANEL_WORK = "Back up and restore"
PANEL_LOOK = "Look and check"
PANEL_UPKEEP = "Upkeep"


@dataclass(slots=True)
class GlobalOptions:
    """The options that stand before the command's name."""

    config: Path | None = None
    verbose: int = 0


def config_path(ctx: typer.Context, chosen: Path | None) -> Path:
    """The configuration file that this call uses; UsageError when there is none."""
    from vmcellar.config import find_config

    options = ctx.find_root().obj
    return find_config(chosen or options.config)


def read_config(ctx: typer.Context, chosen: Path | None) -> Config:
    """The configuration that this call uses."""
    from vmcellar.config import load_config

    return load_config(config_path(ctx, chosen))


def open_repository(ctx: typer.Context, chosen: Path | None, identity: Path | None = None) -> Repository:
    """The repository, unlocked by its passphrase or a recipient's private key; needs neither libvirt nor Prefect."""
    config = read_config(ctx, chosen) if identity else unlocking(config_path(ctx, chosen))
    from vmcellar.repository.repository import Repository

    if identity is None:
        return Repository.open(config)
    from vmcellar.cli.keyfiles import read_private

    return Repository.open(config, read_private(identity))


def open_engine(ctx: typer.Context, chosen: Path | None) -> Engine:
    """The engine with its source of VMs."""
    path = config_path(ctx, chosen)
    unlocking(path)
    from vmcellar.engine import open_engine as open_one

    return open_one(path)


def unlocking(path: Path) -> Config:
    """A configuration whose repository will be opened by its passphrase: the keys are opened while the rest of the
    program is imported.
    """
    from vmcellar.config import load_config
    from vmcellar.repository.ahead import unlock_ahead

    config = load_config(path)
    unlock_ahead(config)
    return config


class _ToStderr(logging.Handler):
    """Writes to what sys.stderr is at that moment, so that progress bars may redirect it."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{record.levelname.lower()}: {record.getMessage()}\n")


def set_up_logging(verbose: int) -> None:
    """The engine's warnings on stderr; with --verbose its steps too, given twice everything."""
    logger = logging.getLogger("vmcellar")
    logger.setLevel({0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG))
    logger.handlers = [_ToStderr()]
