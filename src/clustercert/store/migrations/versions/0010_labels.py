"""Adds labels of projects, users and groups."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# An older program ignores labels, and creates objects without them.
oldest_program = "0007"


def upgrade() -> None:
    for table in ("project", "user", "group"):
        op.add_column(table, sa.Column("labels", sa.JSON(none_as_null=True), nullable=True))
