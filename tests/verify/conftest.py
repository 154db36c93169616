"""The repository of the restore tests, for proofs."""

from __future__ import annotations

from tests.restore.conftest import world

__all__ = ["world"]
