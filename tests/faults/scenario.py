"""How a scenario is written: its parts as functions of a Cellar."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.faults.cellar import Cellar
from tests.faults.trial import Scenario

Step = Callable[[Cellar], object]


def scenario(
    name: str,
    prepare: Step,
    act: Step,
    *,
    finished: Step = Cellar.check,
    settled: Step = Cellar.check,
    again: Step | None = None,
    recipient: bool = False,
) -> Scenario:
    """See Scenario; without `again` the command is repeated as it was, without the others everything is checked."""

    def on(step: Step) -> Callable[[Path], None]:
        def run(folder: Path) -> None:
            step(Cellar(folder, recipient))

        return run

    return Scenario(name, on(prepare), on(act), on(settled), on(again or act), on(finished))


def nothing(_: Cellar) -> None:
    """For a state of which nothing can be asked."""
