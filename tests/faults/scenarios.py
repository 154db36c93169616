"""The commands that write, each with what must hold when it dies or fails anywhere."""

from __future__ import annotations

from tests.faults import (
    backup_scenarios,
    key_scenarios,
    proof_scenarios,
    repair_scenarios,
    restore_scenarios,
    tier_scenarios,
    upkeep_scenarios,
)

ROOMS = (
    backup_scenarios,
    restore_scenarios,
    upkeep_scenarios,
    key_scenarios,
    repair_scenarios,
    tier_scenarios,
    proof_scenarios,
)
SCENARIOS = {scenario.name: scenario for room in ROOMS for scenario in room.SCENARIOS}
