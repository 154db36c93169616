"""The keys of a repository, opened beside what else a command does as it starts.

Argon2 makes a key of a passphrase in 0.1 s of CPU time, without Python's interpreter, while that imports the rest of
the program for longer than this. So this module imports little: no NumPy, nothing of the format.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vmcellar.crypto import slots
from vmcellar.crypto.keyring import RepositoryKeyring
from vmcellar.errors import VmcellarError
from vmcellar.tiers.cellar import CellarTier
from vmcellar.tiers.local import LocalTier

if TYPE_CHECKING:
    from vmcellar.config.tiers import TierSettings
    from vmcellar.crypto.secrets import Secrets
    from vmcellar.tiers.base import Tier


class KeySource(Protocol):
    """Reads the passphrase when it is needed."""

    def read(self) -> bytes:
        """The passphrase; errors name the place it was looked for."""
        ...


class Settings(Protocol):
    """What a configuration must tell; `vmcellar.config.Config` does."""

    @property
    def key(self) -> KeySource | None:
        """Where the passphrase is."""
        ...

    def hot_tier(self) -> TierSettings:
        """Where the hot tier is."""
        ...


_begun: dict[tuple[Path, bytes], Future[Secrets]] = {}
"""By directory and passphrase; each is taken once."""


def unlock_ahead(config: Settings) -> None:
    """Begin to open the keys of a repository in a directory, in a thread, for the `keyring` to come.

    Raises nothing: what is wrong is told when the repository is opened. On servers nothing is begun, as each request
    would be made twice if the answer came to nothing.
    """
    try:
        hot = config.hot_tier()
        if config.key is None or hot.kind != "local":
            return
        passphrase = config.key.read()
    except VmcellarError:
        return
    found = _begun[hot.directory, passphrase] = Future()
    threading.Thread(target=_unlock, args=(hot.directory, passphrase, found), name="unlock-ahead", daemon=True).start()


def _unlock(directory: Path, passphrase: bytes, found: Future[Secrets]) -> None:
    try:
        found.set_result(slots.unlock_secrets(LocalTier(directory), passphrase))
    except BaseException as error:  # told by who opens the repository, in its own words
        found.set_exception(error)


def keyring(tier: Tier, passphrase: bytes) -> RepositoryKeyring:
    """The open keys, by what was begun before where there is something; errors as those of `slots.unlock`."""
    hot = tier.hot if isinstance(tier, CellarTier) else tier
    begun = _begun.pop((hot.path, passphrase), None) if isinstance(hot, LocalTier) else None
    if begun is None or begun.exception() is not None:
        return slots.unlock(tier, passphrase)
    return RepositoryKeyring(tier, begun.result())
