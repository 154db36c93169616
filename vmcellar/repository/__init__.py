"""The repository: chunks in packs, an index, disk maps and restore points, all immutable objects on a tier."""
