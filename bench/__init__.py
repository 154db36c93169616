"""Benches: the peer and us in turn on the same data, ratios of medians, wall and CPU seconds."""
