"""What became of the VMs of one backup call."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmcellar.backup.model import PointSummary
from vmcellar.cli.output import print_error
from vmcellar.errors import VmcellarError


@dataclass(slots=True)
class Outcome:
    """A committed point for each VM that has one, an error for each of the others."""

    points: list[PointSummary] = field(default_factory=list)
    failures: list[VmcellarError] = field(default_factory=list)

    def raise_first_failure(self) -> None:
        """Raise the first error after the others were printed."""
        if self.failures:
            for error in self.failures[1:]:
                print_error(error)
            raise self.failures[0]
