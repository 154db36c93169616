"""The commands that write, each with what must hold when it dies or fails anywhere."""

from __future__ import annotations

from tests.faults import backup_scenarios, key_scenarios, upkeep_scenarios

EVERY = (*backup_scenarios.SCENARIOS, *upkeep_scenarios.SCENARIOS, *key_scenarios.SCENARIOS)
SCENARIOS = {scenario.name: scenario for scenario in EVERY}
