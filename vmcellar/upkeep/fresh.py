"""An index cache that nothing but the tier's index parts went into: what upkeep decides by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from vmcellar.repository.repository import Repository


@contextmanager
def with_fresh_index(repository: Repository) -> Iterator[Repository]:
    """The same repository with an index cache of its own; the caller refreshes it."""
    with TemporaryDirectory(prefix="vmcellar-gc-", dir=repository.cache_dir) as folder:
        own = Repository(repository.tier, repository.keyring, repository.id, Path(folder), repository.clock)
        try:
            yield own
        finally:
            own.close()
