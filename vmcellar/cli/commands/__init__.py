"""One module per command; each has `register(app)` and imports the engine only inside its command."""
