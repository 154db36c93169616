"""Where bytes come from: one file per kind of source behind the Protocols of `base`."""
