"""Adds the audit log: leaf indexes of events, tree tiles, checkpoints, and the key of the log."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# Events that the older program records stay unsealed until a newer program seals them.
oldest_program = "0001"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("audit_event", sa.Column("leaf_index", sa.BigInteger(), nullable=True))
    op.drop_index("ix_audit_event_project_id_id", "audit_event")
    _index_where("leaf_index IS NOT NULL", "ix_audit_event_leaf_index", "leaf_index", unique=True)
    _index_where("leaf_index IS NOT NULL", "ix_audit_event_project_id_leaf_index", "project_id", "leaf_index")
    _index_where("leaf_index IS NULL", "ix_audit_event_unsealed", "id")
    op.create_table(
        "audit_log",
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("public_key", sa.LargeBinary(32), nullable=False),
        sa.Column("sealed_key", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
    )
    op.create_table(
        "audit_tile",
        sa.Column("level", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hashes", sa.LargeBinary(8192), nullable=False),
        sa.PrimaryKeyConstraint("level", "index", name="pk_audit_tile"),
    )
    op.create_table(
        "audit_checkpoint",
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("root", sa.LargeBinary(32), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("size", name="pk_audit_checkpoint"),
    )
    op.create_index("ix_audit_checkpoint_at", "audit_checkpoint", ["at"])
    op.create_table(
        "progress",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_progress"),
    )


def _index_where(condition: str, name: str, *columns: str, unique: bool = False) -> None:
    where = sa.text(condition)
    op.create_index(
        name, "audit_event", list(columns), unique=unique, sqlite_where=where, postgresql_where=where
    )
