"""Adds what the reviews of 29 November 2026 asked for."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

# An older program can't delete a user with known networks. It would accept logins of issuers that users have ended.
oldest_program = "0012"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("certificate", sa.Column("revoked_used_at", TIME, nullable=True))
    for column in ("refused_at", "last_events_at", "last_use_at"):
        op.add_column("webhook_token", sa.Column(column, TIME, nullable=True))
    op.create_table(
        "login_network",
        sa.Column("user_id", sa.String(32), nullable=False),
        sa.Column("network", sa.String(64), nullable=False),
        sa.Column("last_login_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "network", name="pk_login_network"),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name="fk_login_network_user_id_user"),
    )
    op.create_index("ix_login_network_last_login_at", "login_network", ["last_login_at"])
    op.create_table(
        "federated_user",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("logins_ended_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_federated_user"),
    )
    op.create_index("ix_federated_user_name", "federated_user", ["name"])
    # Tells with each cluster whether its project's name is unique.
    op.create_index("ix_project_name", "project", ["name"])
