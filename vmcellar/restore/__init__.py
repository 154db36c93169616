"""restore: from a point back to disk images and a domain."""
