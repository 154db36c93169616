"""Prefect flows: the DAGs. Nothing but composition."""
