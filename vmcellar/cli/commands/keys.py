"""`vmcellar key list|generate|add|remove|rotate|export`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vmcellar.cli.output import console, note, print_json
from vmcellar.cli.session import PANEL_UPKEEP, ConfigOption, JsonOption, read_config
from vmcellar.errors import UsageError

key_app = typer.Typer(help="Keys of the repository: passphrases and recipients.", no_args_is_help=True)

PassphraseFile = Annotated[
    Path | None, typer.Option("--passphrase-file", metavar="FILE", help="Holds the new passphrase.")
]
RecipientFile = Annotated[Path | None, typer.Option("--recipient", metavar="FILE", help="A recipient's public key.")]
LabelOption = Annotated[str, typer.Option(metavar="TEXT", help="Shown by `key list`; not secret.")]


def register(app: typer.Typer) -> None:
    """Add the group to the app."""
    app.add_typer(key_app, name="key", rich_help_panel=PANEL_UPKEEP)


@key_app.command("list")
def list_keys(ctx: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the key slots. Needs no passphrase."""
    from vmcellar.cli.keywork import slots_of

    found = slots_of(read_config(ctx, config))
    if as_json:
        print_json([asdict(slot) for slot in found])
        return
    from vmcellar.cli.render.keys import slots_table

    console().print(slots_table(found))


@key_app.command()
def generate(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The private key goes here, the public one to FILE.pub.")
    ],
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make a recipient's key pair. Do this away from the backup host; only FILE.pub goes there."""
    from vmcellar.cli.keywork import generate_pair

    public = generate_pair(file, passphrase_file)
    sys.stdout.write(f"{file}: private key, keep it away from the backup host\n{file}.pub: public key {public.id}\n")


@key_app.command()
def add(
    ctx: typer.Context,
    passphrase_file: PassphraseFile = None,
    recipient: RecipientFile = None,
    from_paper: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Open the repository with a typed paper key instead of key:.")
    ] = None,
    label: LabelOption = "",
    config: ConfigOption = None,
) -> None:
    """Add a passphrase or a recipient. No pack is touched."""
    if (passphrase_file is None) == (recipient is None):
        raise UsageError(
            "give one of --passphrase-file and --recipient", hint="such as: vmcellar key add --recipient r.pub"
        )
    from vmcellar.cli.keywork import add_passphrase, add_recipient

    settings = read_config(ctx, config)
    if passphrase_file is not None:
        slot = add_passphrase(settings, passphrase_file, from_paper, label)
    else:
        assert recipient is not None  # noqa: S101  (checked above; mypy cannot see it)
        slot, locked = add_recipient(settings, recipient, from_paper, label)
        if locked:
            note(
                f"{locked} epochs could not be opened here: the new recipient reads only what is backed up from now on"
            )
    sys.stdout.write(f"added key {slot}\n")


@key_app.command()
def remove(
    ctx: typer.Context,
    slot: Annotated[str, typer.Argument(metavar="SLOT", help="The key's id, as `key list` shows it.")],
    force: Annotated[
        bool, typer.Option("--force", help="Also where it alone opens some backups: nobody reads them again.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Remove a key. The last one that opens the repository stays, and one that alone opens some backups."""
    from vmcellar.cli.keywork import remove_slot

    remove_slot(read_config(ctx, config), slot, force=force)
    sys.stdout.write(f"removed key {slot}\n")
    note("who had it may have kept the keys inside: `vmcellar key rotate` changes those for what comes")


@key_app.command()
def rotate(
    ctx: typer.Context,
    passphrase_file: PassphraseFile = None,
    recipient: RecipientFile = None,
    identity: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --recipient: the private key that is replaced.")
    ] = None,
    label: LabelOption = "",
    config: ConfigOption = None,
) -> None:
    """Replace the passphrase, or a recipient, and wrap all epoch keys anew. No pack is rewritten."""
    if (passphrase_file is None) == (recipient is None) or (recipient is None) != (identity is None):
        raise UsageError(
            "give --passphrase-file, or --recipient with --identity", hint="see `vmcellar key rotate --help`"
        )
    from vmcellar.cli.keywork import rotate_keys

    rotation = rotate_keys(read_config(ctx, config), passphrase_file, recipient, identity, label)
    sys.stdout.write(f"new key {rotation.slot}; {rotation.rewrapped} epoch keys wrapped anew\n")
    for gone in rotation.removed:
        sys.stdout.write(f"removed key {gone}\n")
    if rotation.locked:
        note(f"{len(rotation.locked)} epoch keys could not be opened; what is sealed under them needs the old keys")
    if passphrase_file is not None:
        note(f"now point key: of the configuration to {passphrase_file}")


@key_app.command()
def export(
    ctx: typer.Context,
    identity: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Print this recipient's private key instead.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Print the repository's keys for paper. Whoever has the sheet needs no passphrase."""
    from vmcellar.cli.keywork import paper_key

    sys.stdout.write(paper_key(read_config(ctx, config), identity))
