"""Deaths and failures at every durable step of every command that writes: what tests/proof and a run by hand share."""
