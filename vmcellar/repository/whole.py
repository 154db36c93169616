"""Whether one object is what was stored under its name, whichever tier it lies on: nothing else is looked at."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from vmcellar.crypto import documents, epochs
from vmcellar.crypto.layout import EPOCHS, KEYS
from vmcellar.errors import IntegrityError
from vmcellar.repository import config_object, envelope, evidence, index_parts, layout, points
from vmcellar.repository.pack_reader import verify_pack

if TYPE_CHECKING:
    from vmcellar.crypto.base import Keyring
    from vmcellar.tiers.base import Tier

_ENVELOPES = {
    layout.PINS: (layout.PIN_MAGIC, layout.PIN_SEAL),
    layout.MARKS: (layout.MARK_MAGIC, layout.MARK_SEAL),
}


def check_object(tier: Tier, keyring: Keyring, own: bytes, key: str) -> None:
    """Read the object and check it; IntegrityError when it is damaged. Raises what the tier raises.

    `own` is the id of the repository. Of a metadata pack every object is opened.
    """
    if key.startswith((layout.META, layout.DATA)):
        with ThreadPoolExecutor(1) as pool:
            verify_pack(tier, key, keyring, pool)
    else:
        check_record(keyring, own, key, tier.get(key))


def check_record(keyring: Keyring, own: bytes, key: str, data: bytes) -> None:
    """IntegrityError unless `data` is what was stored under `key`: any object but a pack."""
    prefix, _, name = key.partition("/")
    prefix += "/"
    if key == layout.CONFIG_KEY:
        found = config_object.parse(data)
        config_object.check(keyring, found)
        if found.id != own:
            raise IntegrityError(f"it is the config of repository {found.id.hex()}")
    elif prefix == layout.POINTS:
        points.decode(keyring, own, name, data)
    elif prefix == layout.INDEX:
        index_parts.decode(keyring, bytes.fromhex(name), data)
    elif prefix == layout.EVIDENCE:
        evidence.decode(keyring, own, name, data)
    elif prefix == KEYS:
        documents.decode(key, data)
    elif prefix == EPOCHS:
        epochs.check_object(keyring.open_meta, key, data)
    elif prefix in _ENVELOPES:
        magic, seal = _ENVELOPES[prefix]
        envelope.unwrap(keyring, magic, seal, key.encode(), data)
    else:
        raise IntegrityError(f"{key} is no object of a repository")
