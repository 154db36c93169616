"""What Alembic runs: the migrations, on the connection that the caller holds, in its transaction."""

from __future__ import annotations

from alembic import context

from vmcellar.catalog.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite alters a table by making it anew
)
with context.begin_transaction():
    context.run_migrations()
