"""The parsers of keys and of the configuration."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

from tests.crypto.store import CHEAP, WORD, MemoryStore, passphrase_mode, recipient_mode, seal_pack
from tests.faults.mutate import mutate_document, mutate_text
from tests.faults.parser import Parser
from vmcellar.config.load import parse_config
from vmcellar.config.template import render_template
from vmcellar.crypto import layout, paper, passphrase, slots
from vmcellar.crypto.epochs import Epochs
from vmcellar.crypto.meta_seal import MetaSeal
from vmcellar.crypto.recipient import PrivateKey, PublicKey
from vmcellar.crypto.recipients import recipients


def key_parsers() -> list[Parser]:
    store, other = MemoryStore(), MemoryStore()
    secrets = passphrase_mode(store)
    pair = PrivateKey.generate()
    meta = MetaSeal(recipient_mode(other, pair.public).meta)
    recipient_name = f"keys/{pair.public.id}"
    slot = store.only("keys/")
    epoch = seal_pack(slots.unlock(store, WORD))[0]
    epoch_name = store.only("epochs/")

    def slot_of(data: bytes) -> None:
        kept = MemoryStore({slot: data})
        slots.list_slots(kept)
        slots.unlock_secrets(kept, WORD)

    def recipient_of(data: bytes) -> None:
        recipients(MemoryStore({recipient_name: data}), meta)

    def epoch_of(data: bytes) -> None:
        Epochs(MemoryStore({epoch_name: data}), MetaSeal(secrets.meta), secrets.data).key(epoch)

    sheets = tuple(paper.export(key, "title").encode() for key in (secrets, pair))
    return [
        Parser("key slot", (store.get(slot),), slot_of, mutate_document),
        Parser("recipient slot", (other.get(recipient_name),), recipient_of, mutate_document, 0.5),
        Parser("epoch key", (store.get(epoch_name),), epoch_of, weight=0.5),
        Parser("public key file", (pair.public.to_file(),), partial(PublicKey.from_file, "f"), mutate_document),
        Parser(
            "private key file",
            (pair.to_file(WORD, CHEAP),),
            lambda data: PrivateKey.from_file("f", data, WORD),
            mutate_document,
        ),
        Parser("paper key", sheets, lambda data: paper.parse(data.decode(errors="replace")), mutate_text),
    ]


def cheap_stretch() -> None:
    """Any cost that is let through takes no time here: `reveal` bounds it."""

    def stretch(word: bytes, salt: bytes, cost: passphrase.Argon2Cost) -> bytes:
        assert cost.memory_kib <= passphrase.LIMIT.memory_kib
        assert cost.memory_kib * cost.passes <= layout.WORK_KIB_MOST
        return hashlib.sha256(word + salt).digest()

    setattr(passphrase, "_stretch", stretch)  # noqa: B010  (mypy would have it that names of arguments matter)


YAML = (
    render_template("/srv/x", "key:\n  file: /etc/p\n", Path("/var/lib/x")).encode(),
    b"tiers: {hot: /srv/x}\nkey: {environment: X}\nlimits: {segment: 1 GiB, freeze: 10 s}\n"
    b"landing: {budget: 1 GiB}\nbackups:\n"
    b'  - {name: a, domains: ["web*", "tag:x"], schedule: "0 2 * * *", retention: {daily: 7}, storage: "ceph::p/x"}\n'
    b'  - name: production\n    schedule: "0 2 * * *"\n    retention: 30d\n    compression: zstd:3\n    exclude:\n'
    b"      - /var/log transient\n    encryption: AES-256\n    window: 22:00-06:00\n",
)


def config_parser() -> Parser:
    """The configuration file."""

    def parse(data: bytes) -> None:
        parse_config(data.decode(errors="replace"), Path("/x.yaml"))

    return Parser("vmcellar.yaml", YAML, parse, mutate_text, 0.05)
