"""Prefect tasks: one engine call each, plus retries, cache keys, names and artifacts. No logic of their own."""
