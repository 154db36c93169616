"""What the key commands do: unlock with what the configuration names, then one call to vmcellar.crypto."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from vmcellar.cli.keyfiles import read_passphrase, read_private, read_public, write_new_key
from vmcellar.config import Config
from vmcellar.crypto import paper, slots
from vmcellar.crypto.epochs import Epochs, share
from vmcellar.crypto.holders import Recipient
from vmcellar.crypto.meta_seal import MetaSeal
from vmcellar.crypto.recipient import PrivateKey, PublicKey
from vmcellar.crypto.recipients import add_recipient as add_recipient_slot
from vmcellar.crypto.rotate import Rotation, rotate_passphrase, rotate_recipient
from vmcellar.crypto.secrets import Secrets
from vmcellar.errors import UsageError
from vmcellar.repository.layout import CONFIG_KEY
from vmcellar.tiers.base import Tier
from vmcellar.tiers.mark import no_repository
from vmcellar.tiers.registry import open_tiers


def slots_of(config: Config) -> list[slots.SlotInfo]:
    """The key slots of the configuration's repository."""
    return slots.list_slots(_tier(config))


def generate_pair(path: Path, passphrase_file: Path | None) -> PublicKey:
    """Write a new private key to `path`, its public half to `path`.pub; neither may exist."""
    public_path = path.with_name(path.name + ".pub")
    if public_path.exists():
        raise UsageError(f"{public_path} exists already; it was left as it is", hint="name another file")
    secret = read_passphrase(passphrase_file) if passphrase_file else _new_passphrase()
    pair = PrivateKey.generate()
    write_new_key(path, pair.to_file(secret), 0o600)
    write_new_key(public_path, pair.public.to_file(), 0o644)
    return pair.public


def add_passphrase(config: Config, file: Path, sheet: Path | None, label: str) -> str:
    """A slot for the passphrase in `file`; its id."""
    tier = _tier(config)
    return slots.add_passphrase(tier, _secrets(config, tier, sheet), read_passphrase(file), label=label)


def add_recipient(config: Config, file: Path, sheet: Path | None, label: str) -> tuple[str, int]:
    """A slot for the recipient in `file`, and all epoch keys that can be opened here; its id, and how many cannot."""
    tier = _tier(config)
    secrets = _secrets(config, tier, sheet)
    public = read_public(file)
    known = public.id in {slot.id for slot in slots.list_slots(tier)}
    slot = public.id if known else add_recipient_slot(tier, secrets, public, label)
    shared = share(tier, Epochs(tier, MetaSeal(secrets.meta), secrets.data), Recipient(public))
    if known and not shared.given:  # else an earlier call died between the slot and the epoch keys
        raise UsageError(f"recipient {public.id} has a key slot already", hint="see `vmcellar key list`")
    return slot, len(shared.locked)


def remove_slot(config: Config, slot: str, *, force: bool = False) -> None:
    """Delete a slot; see `slots.remove`."""
    slots.remove(_tier(config), slot, force=force)


def rotate_keys(
    config: Config, passphrase_file: Path | None, recipient: Path | None, identity: Path | None, label: str
) -> Rotation:
    """Replace the passphrase by the one in `passphrase_file`, or the recipient `identity` by `recipient`."""
    tier = _tier(config)
    if recipient is not None and identity is not None:
        return rotate_recipient(tier, read_private(identity), read_public(recipient), label=label)
    if passphrase_file is None:
        raise UsageError("no new passphrase", hint="add --passphrase-file FILE")
    return rotate_passphrase(tier, _passphrase(config), read_passphrase(passphrase_file), label=label)


def paper_key(config: Config, identity: Path | None) -> str:
    """The text for paper: of the repository's keys, or of a recipient's private key."""
    if identity is not None:
        private = read_private(identity)
        return paper.export(private, f"private key of recipient {private.public.id}")
    tier = _tier(config)
    return paper.export(_secrets(config, tier, None), f"repository {config.hot_tier().storage}")


def _tier(config: Config) -> Tier:
    tier = open_tiers(config)
    if not tier.exists(CONFIG_KEY):
        raise no_repository(tier)
    return tier


def _secrets(config: Config, tier: Tier, sheet: Path | None) -> Secrets:
    if sheet is None:
        return slots.unlock_secrets(tier, _passphrase(config))
    key = paper.parse(sheet.read_text(encoding="utf-8"))
    if not isinstance(key, Secrets):
        raise UsageError(f"{sheet} is a recipient's private key, not the repository's", hint="type the other sheet")
    return key


def _passphrase(config: Config) -> bytes:
    if config.key is None:
        raise UsageError("vmcellar.yaml names no key", hint="add `key:` with `file: PATH` of the passphrase")
    return config.key.read()


def _new_passphrase() -> bytes:
    if not sys.stdin.isatty():
        raise UsageError(
            "--passphrase-file FILE is missing, and there is no terminal to ask on", hint="add --passphrase-file FILE"
        )
    return str(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True)).encode()
