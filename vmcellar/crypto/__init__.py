"""Keys: what they may do, how they are derived, and how they are kept."""
