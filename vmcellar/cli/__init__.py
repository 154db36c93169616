"""The `vmcellar` command: parse, call one engine function, render; nothing heavy is imported before it is needed."""
