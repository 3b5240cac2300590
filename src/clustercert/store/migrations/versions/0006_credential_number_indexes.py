"""Adds indexes on credential numbers. While they are being created, the ledger can be read but not written."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

oldest_program = "0005"


def upgrade() -> None:
    _index(
        "uq_certificate_credential_number", "credential_number IS NOT NULL", "credential_number", unique=True
    )
    _index("ix_certificate_user_id_not_after_unnumbered", "credential_number IS NULL", "user_id", "not_after")


def _index(name: str, condition: str, *columns: str, unique: bool = False) -> None:
    where = sa.text(condition)
    op.create_index(
        name, "certificate", list(columns), unique=unique, sqlite_where=where, postgresql_where=where
    )
