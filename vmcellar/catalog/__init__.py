"""The catalog: the history of backups in SQL, rebuildable from the repository (docs/catalog.md)."""
