"""Adds revocations, times of use, webhook tokens, unknown credentials, and cluster options."""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# The older program records certificates with epoch 0, which is older than any revocation. So while that program runs,
# its new certificates for a revoked user are revoked: it fails closed.
oldest_program = "0001"

TIME = sa.DateTime(timezone=True)
ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "revocation",
        sa.Column("id", ROW_ID, autoincrement=True, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("changed", sa.BigInteger(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(32), nullable=True),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("cluster_id", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(32), nullable=True),
        sa.Column("at", TIME, nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("reason", sa.String(32), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("proved", sa.Boolean(), nullable=False),
        sa.Column("undone_at", TIME, nullable=True),
        sa.Column("undone_by", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_revocation"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_revocation_user_id_cluster_id_fingerprint_epoch",
        "revocation",
        ["user_id", "cluster_id", "fingerprint", "epoch"],
    )
    op.create_index("ix_revocation_project_id_id", "revocation", ["project_id", "id"])
    op.create_index("ix_revocation_fingerprint", "revocation", ["fingerprint"])
    op.create_index("ix_revocation_changed", "revocation", ["changed"])
    _revoke_former_users()
    op.create_table(
        "webhook_token",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("cluster_id", sa.String(36), nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("last_asked_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_token"),
        sa.UniqueConstraint("hash", name="uq_webhook_token_hash"),
        sa.ForeignKeyConstraint(["cluster_id"], ["cluster.id"], name="fk_webhook_token_cluster_id_cluster"),
    )
    op.create_index("ix_webhook_token_cluster_id", "webhook_token", ["cluster_id"])
    op.create_table(
        "unknown_credential",
        sa.Column("cluster_id", sa.String(36), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(32), nullable=False),
        sa.Column("username", sa.Text(), nullable=False),
        sa.Column("groups", sa.JSON(), nullable=False),
        sa.Column("first_seen_at", TIME, nullable=False),
        sa.Column("last_seen_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("cluster_id", "fingerprint", name="pk_unknown_credential"),
    )
    op.add_column("cluster", sa.Column("options", sa.JSON(), nullable=True))
    op.add_column("certificate", sa.Column("first_seen_at", TIME, nullable=True))
    op.add_column("certificate", sa.Column("last_seen_at", TIME, nullable=True))
    op.add_column("certificate", sa.Column("rule", sa.Text(), nullable=True))
    op.create_index("ix_certificate_serial", "certificate", ["serial"])
    op.create_index("ix_certificate_project_id_id", "certificate", ["project_id", "id"])
    op.create_index("ix_certificate_cluster_id_not_after", "certificate", ["cluster_id", "not_after"])


def _revoke_former_users() -> None:
    """Revoke the certificates of users who were disabled or deleted before this program could revoke them."""
    user = sa.table("user", sa.column("id"), sa.column("enabled", sa.Boolean()))
    issued_to = sa.table("certificate", sa.column("user_id")).c.user_id
    disabled = sa.select(user.c.id).where(user.c.enabled.is_(sa.false()))
    removed = sa.select(issued_to).where(issued_to.not_in(sa.select(user.c.id))).distinct()
    gone = sa.union(disabled, removed).subquery()
    # Epoch `revocations.NO_END` includes future certificates. No program caches revocations yet, so `changed` is 0.
    revocation = {
        "user_id": gone.c.id,
        "epoch": sa.literal(2**63 - 1, sa.BigInteger()),
        "changed": sa.literal(0, sa.BigInteger()),
        "cluster_id": sa.literal(""),
        "at": sa.literal(datetime.now(UTC), TIME),
        "by": sa.literal("clustercert"),
        "reason": sa.literal("cessationOfOperation"),
        "note": sa.literal("user.disabled"),
        "proved": sa.false(),
    }
    table = sa.table("revocation", *(sa.column(name) for name in revocation))
    op.execute(table.insert().from_select(list(revocation), sa.select(*revocation.values())))
