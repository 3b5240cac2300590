"""Adds the revision that the oldest program is recorded for."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

# An older program does not read the column.
oldest_program = "0007"


def upgrade() -> None:
    # In a new database, the table was created with the column, since migrations lock its row.
    if not any(each["name"] == "revision" for each in sa.inspect(op.get_bind()).get_columns("migration")):
        op.add_column("migration", sa.Column("revision", sa.String(4), nullable=True))
