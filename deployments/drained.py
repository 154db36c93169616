"""What a drain paused, kept in the state directory; without Prefect, so that a look costs nothing."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from uuid import UUID

FILE = "drained.json"


@dataclass(slots=True)
class Drained:
    """What was paused on the server, by id."""

    where: str
    deployments: list[UUID] = field(default_factory=list)
    queues: list[UUID] = field(default_factory=list)


def read(state: Path) -> Drained | None:
    """What a drain paused; None when none did."""
    try:
        kept = json.loads((state / FILE).read_text())
    except FileNotFoundError:
        return None
    return Drained(kept["where"], *([UUID(text) for text in kept[what]] for what in ("deployments", "queues")))


def write(state: Path, done: Drained) -> None:
    """Replace it by rename: a crash leaves the old or the new."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = state / f"{FILE}.new"
    new.write_text(json.dumps(asdict(done), default=str))
    with new.open("rb") as file:
        os.fsync(file.fileno())
    new.replace(state / FILE)
