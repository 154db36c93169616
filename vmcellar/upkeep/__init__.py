"""Upkeep: dropping points by policy, pinning them, and collecting what no point needs. All that deletes is in here."""
