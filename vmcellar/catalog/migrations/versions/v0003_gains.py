"""What a change of a schedule was expected to bring."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0003"
down_revision = "v0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("schedule_changes", sa.Column("predicted", sa.JSON(), nullable=True))
