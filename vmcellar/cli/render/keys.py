"""Key slots as a table."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from vmcellar.crypto.slots import SlotInfo


def slots_table(slots: Iterable[SlotInfo]) -> Table:
    """A row per slot."""
    table = Table("key", "kind", "created", "label", box=None, pad_edge=False)
    for slot in slots:
        table.add_row(slot.id, slot.kind, slot.created, slot.label)
    return table
