"""Tiers: places that hold immutable objects under keys."""
