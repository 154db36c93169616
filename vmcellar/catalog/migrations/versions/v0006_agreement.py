"""Whether the segments of a disk add up to it, and which runs were judged by that."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0006"
down_revision = "v0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column, make the table."""
    op.add_column("run_disks", sa.Column("segments_agree", sa.Boolean(), nullable=True))
    op.create_table(
        "judged_segments",
        sa.Column("repository", sa.String(length=32), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("repository"),
    )
