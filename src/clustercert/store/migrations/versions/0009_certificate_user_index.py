"""Adds the user to the index on a cluster's unexpired certificates. Meanwhile the ledger can't be written."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

oldest_program = "0007"


def upgrade() -> None:
    op.create_index(
        "ix_certificate_cluster_id_not_after_user_id", "certificate", ["cluster_id", "not_after", "user_id"]
    )
    op.drop_index("ix_certificate_cluster_id_not_after", table_name="certificate")
