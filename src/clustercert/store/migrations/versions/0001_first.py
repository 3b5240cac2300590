"""The first schema: data keys, the built-in identity service, clusters and their CAs, certificates, audit events."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

oldest_program = "0001"

TIME = sa.DateTime(timezone=True)
ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


# No downgrade, because an older program can't interpret newer rows. Restore a backup instead.
def upgrade() -> None:
    _make_keys()
    _make_identity()
    _make_assignments()
    _make_credentials()
    _make_clusters()
    _make_certificates()
    _make_audit()


def _make_keys() -> None:
    generation = op.create_table(
        "generation",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_generation"),
    )
    op.bulk_insert(generation, [{"id": 1, "value": 0}])
    op.create_table(
        "data_key",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kek_id", sa.String(16), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_data_key"),
    )


def _make_identity() -> None:
    op.create_table(
        "domain",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_domain"),
        sa.UniqueConstraint("name", name="uq_domain_name"),
    )
    op.create_table(
        "project",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("domain_id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("description", sa.String(255), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_project"),
        sa.UniqueConstraint("domain_id", "name", name="uq_project_domain_id_name"),
        sa.ForeignKeyConstraint(["domain_id"], ["domain.id"], name="fk_project_domain_id_domain"),
    )
    op.create_table(
        "user",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("domain_id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("password_hash", sa.String(255), nullable=True),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_user"),
        sa.UniqueConstraint("domain_id", "name", name="uq_user_domain_id_name"),
        sa.ForeignKeyConstraint(["domain_id"], ["domain.id"], name="fk_user_domain_id_domain"),
    )
    op.create_table(
        "group",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("domain_id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_group"),
        sa.UniqueConstraint("domain_id", "name", name="uq_group_domain_id_name"),
        sa.ForeignKeyConstraint(["domain_id"], ["domain.id"], name="fk_group_domain_id_domain"),
    )
    op.create_table(
        "role",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_role"),
        sa.UniqueConstraint("name", name="uq_role_name"),
    )


def _make_assignments() -> None:
    op.create_table(
        "group_member",
        sa.Column("group_id", sa.String(32), nullable=False),
        sa.Column("user_id", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("group_id", "user_id", name="pk_group_member"),
        sa.ForeignKeyConstraint(["group_id"], ["group.id"], name="fk_group_member_group_id_group"),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name="fk_group_member_user_id_user"),
    )
    op.create_index("ix_group_member_user_id", "group_member", ["user_id"])
    op.create_table(
        "role_assignment",
        sa.Column("actor_id", sa.String(32), nullable=False),
        sa.Column("project_id", sa.String(32), nullable=False),
        sa.Column("role_id", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("actor_id", "project_id", "role_id", name="pk_role_assignment"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_role_assignment_project_id_project"),
        sa.ForeignKeyConstraint(["role_id"], ["role.id"], name="fk_role_assignment_role_id_role"),
    )
    op.create_index("ix_role_assignment_project_id", "role_assignment", ["project_id"])
    op.create_table(
        "service_role",
        sa.Column("actor_id", sa.String(32), nullable=False),
        sa.Column("role_id", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("actor_id", "role_id", name="pk_service_role"),
        sa.ForeignKeyConstraint(["role_id"], ["role.id"], name="fk_service_role_role_id_role"),
    )


def _make_credentials() -> None:
    op.create_table(
        "token",
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
        sa.Column("user_id", sa.String(32), nullable=False),
        sa.Column("project_id", sa.String(32), nullable=True),
        sa.Column("domain_id", sa.String(32), nullable=True),
        sa.Column("methods", sa.JSON(), nullable=False),
        sa.Column("issued_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("hash", name="pk_token"),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name="fk_token_user_id_user"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_token_project_id_project"),
        sa.ForeignKeyConstraint(["domain_id"], ["domain.id"], name="fk_token_domain_id_domain"),
    )
    op.create_index("ix_token_user_id", "token", ["user_id"])
    op.create_index("ix_token_expires_at", "token", ["expires_at"])
    op.create_table(
        "access_key",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("user_id", sa.String(32), nullable=False),
        sa.Column("sealed_secret", sa.LargeBinary(), nullable=False),
        sa.Column("description", sa.String(255), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("security_token_hash", sa.LargeBinary(32), nullable=True),
        sa.Column("expires_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_access_key"),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name="fk_access_key_user_id_user"),
    )
    op.create_index("ix_access_key_user_id", "access_key", ["user_id"])
    op.create_index("ix_access_key_expires_at", "access_key", ["expires_at"])


def _make_clusters() -> None:
    op.create_table(
        "cluster",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("internal_url", sa.String(512), nullable=False),
        sa.Column("external_url", sa.String(512), nullable=True),
        sa.Column("san_urls", sa.JSON(), nullable=False),
        sa.Column("server_ca_pem", sa.LargeBinary(), nullable=False),
        sa.Column("signer", sa.String(64), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_cluster"),
        sa.UniqueConstraint("project_id", "name", name="uq_cluster_project_id_name"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_cluster_project_id_project"),
    )
    op.create_table(
        "client_ca",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("cluster_id", sa.String(36), nullable=False),
        sa.Column("certificate_der", sa.LargeBinary(), nullable=False),
        sa.Column("sealed_key", sa.LargeBinary(), nullable=True),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("not_after", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_client_ca"),
        sa.ForeignKeyConstraint(["cluster_id"], ["cluster.id"], name="fk_client_ca_cluster_id_cluster"),
    )
    op.create_index("ix_client_ca_cluster_id", "client_ca", ["cluster_id"])


def _make_certificates() -> None:
    op.create_table(
        "certificate",
        sa.Column("id", ROW_ID, autoincrement=True, nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(32), nullable=False),
        sa.Column("serial", sa.String(40), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("cluster_id", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(32), nullable=False),
        sa.Column("ca_id", sa.String(32), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("user_name", sa.Text(), nullable=False),
        sa.Column("groups", sa.JSON(), nullable=False),
        sa.Column("not_before", TIME, nullable=False),
        sa.Column("not_after", TIME, nullable=False),
        sa.Column("key_type", sa.String(16), nullable=False),
        sa.Column("key_origin", sa.String(16), nullable=False),
        sa.Column("auth_method", sa.String(16), nullable=False),
        sa.Column("source_address", sa.String(64), nullable=False),
        sa.Column("request_id", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("issued_at", TIME, nullable=False),
        sa.Column("revoked_at", TIME, nullable=True),
        sa.Column("revoked_by", sa.Text(), nullable=True),
        sa.Column("revoked_why", sa.Text(), nullable=True),
        sa.Column("der", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_certificate"),
        sa.UniqueConstraint("fingerprint", name="uq_certificate_fingerprint"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_certificate_cluster_id_id", "certificate", ["cluster_id", "id"])
    op.create_index("ix_certificate_user_id_id", "certificate", ["user_id", "id"])
    op.create_index("ix_certificate_not_after", "certificate", ["not_after"])


def _make_audit() -> None:
    op.create_table(
        "audit_event",
        sa.Column("id", ROW_ID, autoincrement=True, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(32), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("salt", sa.LargeBinary(16), nullable=False),
        sa.Column("commitment", sa.LargeBinary(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_event"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_event_project_id_id", "audit_event", ["project_id", "id"])
