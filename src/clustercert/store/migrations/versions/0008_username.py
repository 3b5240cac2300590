"""Adds user names that the policy chooses, and their owners."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# An older program issues certificates without chosen names, and its webhook denies certificates that have one.
oldest_program = "0007"


def upgrade() -> None:
    op.add_column("certificate", sa.Column("username", sa.Text(), nullable=True))
    op.create_table(
        "username",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_username"),
    )
