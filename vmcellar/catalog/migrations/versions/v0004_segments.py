"""What a run did with each segment, and how often a stage had to be done again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0004"
down_revision = "v0003"
branch_labels = None
depends_on = None

_BYTES = ("read", "zero", "changed", "known", "new", "stored")
_STAGES = ("export", "compress", "place", "verify")


def upgrade() -> None:
    """Make the table, add the column."""
    op.create_table(
        "segments",
        sa.Column("run_id", sa.String(length=80), nullable=False),
        sa.Column("target", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False, autoincrement=False),
        *(sa.Column(f"bytes_{name}", sa.BigInteger(), nullable=False) for name in _BYTES),
        sa.Column("chunks_known", sa.BigInteger(), nullable=False),
        *(sa.Column(f"{name}_seconds", sa.Double(), nullable=False) for name in _STAGES),
        sa.Column("entropy", sa.Double(), nullable=True),
        sa.Column("tier", sa.String(length=64), nullable=False),
        sa.Column("retries", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "target", "number"),
    )
    op.add_column("stages", sa.Column("retries", sa.Integer(), nullable=True))
