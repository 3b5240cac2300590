"""Adds leases for leader election, and a covering index for counting live certificates."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# The older program does not use leases, and its queries can use the new index.
oldest_program = "0001"


def upgrade() -> None:
    op.create_table(
        "lease",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("holder", sa.String(32), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_lease"),
    )
    op.create_index("ix_certificate_not_after_revoked_at", "certificate", ["not_after", "revoked_at"])
    op.drop_index("ix_certificate_not_after", "certificate")
