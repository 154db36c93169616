"""What whoever brings a point back is told of the paths that it leaves out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmcellar.cli.output import note

if TYPE_CHECKING:
    from vmcellar.repository.points import RestorePoint


def tell_left_out(point: RestorePoint) -> None:
    """A warning on stderr where the content of some paths is not in the point."""
    from vmcellar.repository.left_out import warning

    if words := warning(point):
        note(f"warning: point {point.id}: {words}")
