"""What was advised on storing, so that the gain that came can be told later."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0005"
down_revision = "v0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "storage_advice",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("repository", sa.String(length=32), nullable=False),
        sa.Column("about", sa.String(length=32), nullable=False),
        sa.Column("vm", sa.String(length=255), nullable=False),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("today", sa.Text(), nullable=False),
        sa.Column("advised", sa.Text(), nullable=False),
        sa.Column("figure", sa.Double(), nullable=False),
        sa.Column("predicted", sa.Double(), nullable=False),
        sa.Column("followed", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("storage_advice_by_time", "storage_advice", ["repository", "time"])
