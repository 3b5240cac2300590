"""The schema of version 0.1.0, which is the first one.

Databases from earlier builds have schemas 0001 to 0012, and can't be upgraded.
"""

import sqlalchemy as sa
from alembic import op

revision = "1001"
down_revision = None
branch_labels = None
depends_on = None

oldest_program = "1001"

_UTC = sa.DateTime(timezone=True)
# In SQLite, only a column of type INTEGER can be the row id.
_ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_HEX = sa.String(32)
_UUID = sa.String(36)


# This migration has no downgrade, because an older program can't interpret newer rows. Restore a backup instead.
def upgrade() -> None:
    _create_service_tables()
    _create_directory()
    _create_logins()
    _create_clusters()
    _create_certificates()
    _create_access_requests()
    _create_audit_log()


def _create_service_tables() -> None:
    op.create_table(
        "generation",
        sa.Column("id", sa.SmallInteger(), nullable=False, autoincrement=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_generation"),
    )
    op.execute("INSERT INTO generation (id, value) VALUES (1, 0)")
    op.create_table(
        "lease",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("holder", _HEX, nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_lease"),
    )
    op.create_table(
        "data_key",
        sa.Column("id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("created_at", _UTC, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_data_key"),
    )
    op.create_table(
        "data_key_wrapping",
        sa.Column("data_key_id", sa.Integer(), nullable=False),
        sa.Column("kek_id", sa.String(160), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("data_key_id", "kek_id", name="pk_data_key_wrapping"),
        sa.ForeignKeyConstraint(
            ["data_key_id"], ["data_key.id"], name="fk_data_key_wrapping_data_key_id_data_key"
        ),
    )
    op.create_table(
        "progress",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_progress"),
    )


def _create_directory() -> None:
    op.create_table(
        "domain",
        sa.Column("id", _HEX, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_domain"),
        sa.UniqueConstraint("name", name="uq_domain_name"),
    )
    op.create_table(
        "project",
        sa.Column("id", _HEX, nullable=False),
        sa.Column("domain_id", _HEX, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("description", sa.String(255), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_project"),
        sa.ForeignKeyConstraint(["domain_id"], ["domain.id"], name="fk_project_domain_id_domain"),
        sa.UniqueConstraint("domain_id", "name", name="uq_project_domain_id_name"),
    )
    op.create_index("ix_project_name", "project", ["name"])
    op.create_table(
        "user",
        sa.Column("id", _HEX, nullable=False),
        sa.Column("domain_id", _HEX, nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("password_hash", sa.String(255), nullable=True),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("created_at", _UTC, nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_user"),
        sa.ForeignKeyConstraint(["domain_id"], ["domain.id"], name="fk_user_domain_id_domain"),
        sa.UniqueConstraint("domain_id", "name", name="uq_user_domain_id_name"),
    )
    op.create_table(
        "federated_user",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("logins_ended_at", _UTC, nullable=True),
        sa.Column("last_login_at", _UTC, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_federated_user"),
    )
    op.create_index("ix_federated_user_name", "federated_user", ["name"])
    op.create_table(
        "group",
        sa.Column("id", _HEX, nullable=False),
        sa.Column("domain_id", _HEX, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_group"),
        sa.ForeignKeyConstraint(["domain_id"], ["domain.id"], name="fk_group_domain_id_domain"),
        sa.UniqueConstraint("domain_id", "name", name="uq_group_domain_id_name"),
    )
    op.create_table(
        "group_member",
        sa.Column("group_id", _HEX, nullable=False),
        sa.Column("user_id", _HEX, nullable=False),
        sa.PrimaryKeyConstraint("group_id", "user_id", name="pk_group_member"),
        sa.ForeignKeyConstraint(["group_id"], ["group.id"], name="fk_group_member_group_id_group"),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name="fk_group_member_user_id_user"),
    )
    op.create_index("ix_group_member_user_id", "group_member", ["user_id"])
    op.create_table(
        "role",
        sa.Column("id", _HEX, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_role"),
        sa.UniqueConstraint("name", name="uq_role_name"),
    )
    op.create_table(
        "role_assignment",
        sa.Column("actor_id", _HEX, nullable=False),
        sa.Column("project_id", _HEX, nullable=False),
        sa.Column("role_id", _HEX, nullable=False),
        sa.PrimaryKeyConstraint("actor_id", "project_id", "role_id", name="pk_role_assignment"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_role_assignment_project_id_project"),
        sa.ForeignKeyConstraint(["role_id"], ["role.id"], name="fk_role_assignment_role_id_role"),
    )
    op.create_index("ix_role_assignment_project_id", "role_assignment", ["project_id"])
    op.create_table(
        "service_role",
        sa.Column("actor_id", _HEX, nullable=False),
        sa.Column("role_id", _HEX, nullable=False),
        sa.PrimaryKeyConstraint("actor_id", "role_id", name="pk_service_role"),
        sa.ForeignKeyConstraint(["role_id"], ["role.id"], name="fk_service_role_role_id_role"),
    )


def _create_logins() -> None:
    op.create_table(
        "token",
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
        sa.Column("user_id", _HEX, nullable=False),
        sa.Column("project_id", _HEX, nullable=True),
        sa.Column("domain_id", _HEX, nullable=True),
        sa.Column("methods", sa.JSON(), nullable=False),
        sa.Column("issued_at", _UTC, nullable=False),
        sa.Column("expires_at", _UTC, nullable=False),
        sa.PrimaryKeyConstraint("hash", name="pk_token"),
        sa.ForeignKeyConstraint(["domain_id"], ["domain.id"], name="fk_token_domain_id_domain"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_token_project_id_project"),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name="fk_token_user_id_user"),
    )
    op.create_index("ix_token_expires_at", "token", ["expires_at"])
    op.create_index("ix_token_user_id", "token", ["user_id"])
    op.create_table(
        "console_session",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("method", sa.String(16), nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("created_at", _UTC, nullable=False),
        sa.Column("seen_at", _UTC, nullable=False),
        sa.Column("authenticated_at", _UTC, nullable=True),
        sa.Column("sid", sa.Text(), nullable=True),
        sa.Column("sub", sa.Text(), nullable=True),
        sa.Column("sealed_credential", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_console_session"),
    )
    op.create_index("ix_console_session_user_id", "console_session", ["user_id"])
    op.create_table(
        "login_network",
        sa.Column("user_id", _HEX, nullable=False),
        sa.Column("network", sa.String(64), nullable=False),
        sa.Column("last_login_at", _UTC, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "network", name="pk_login_network"),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name="fk_login_network_user_id_user"),
    )
    op.create_index("ix_login_network_last_login_at", "login_network", ["last_login_at"])
    op.create_table(
        "access_key",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("user_id", _HEX, nullable=False),
        sa.Column("sealed_secret", sa.LargeBinary(), nullable=False),
        sa.Column("description", sa.String(255), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("created_at", _UTC, nullable=False),
        sa.Column("security_token_hash", sa.LargeBinary(32), nullable=True),
        sa.Column("expires_at", _UTC, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_access_key"),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name="fk_access_key_user_id_user"),
    )
    op.create_index("ix_access_key_expires_at", "access_key", ["expires_at"])
    op.create_index("ix_access_key_user_id", "access_key", ["user_id"])


def _create_clusters() -> None:
    op.create_table(
        "cluster",
        sa.Column("id", _UUID, nullable=False),
        sa.Column("project_id", _HEX, nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("internal_url", sa.String(512), nullable=False),
        sa.Column("external_url", sa.String(512), nullable=True),
        sa.Column("san_urls", sa.JSON(), nullable=False),
        sa.Column("api_servers", sa.JSON(), nullable=False),
        sa.Column("server_ca_pem", sa.LargeBinary(), nullable=False),
        sa.Column("signer", sa.String(64), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("created_at", _UTC, nullable=False),
        sa.Column("updated_at", _UTC, nullable=False),
        sa.Column("verified_at", _UTC, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_cluster"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name="fk_cluster_project_id_project"),
        sa.UniqueConstraint("project_id", "name", name="uq_cluster_project_id_name"),
    )
    op.create_index("ix_cluster_verified_at", "cluster", ["verified_at"])
    op.create_table(
        "client_ca",
        sa.Column("id", _HEX, nullable=False),
        sa.Column("cluster_id", _UUID, nullable=False),
        sa.Column("certificate_der", sa.LargeBinary(), nullable=True),
        sa.Column("sealed_key", sa.LargeBinary(), nullable=True),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("signer", sa.String(64), nullable=False),
        sa.Column("key_reference", sa.String(512), nullable=True),
        sa.Column("not_before", _UTC, nullable=True),
        sa.Column("not_after", _UTC, nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("access_expires_at", _UTC, nullable=True),
        sa.Column("unknown_tokens", sa.Integer(), nullable=True),
        sa.Column("unknown_confirmed", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_client_ca"),
        sa.ForeignKeyConstraint(["cluster_id"], ["cluster.id"], name="fk_client_ca_cluster_id_cluster"),
    )
    op.create_index("ix_client_ca_cluster_id", "client_ca", ["cluster_id"])
    op.create_index("ix_client_ca_state_not_after", "client_ca", ["state", "not_after"])
    op.create_table(
        "ca_rotation",
        sa.Column("cluster_id", _UUID, nullable=False),
        sa.Column("old_ca_id", _HEX, nullable=False),
        sa.Column("new_ca_id", _HEX, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("since", _UTC, nullable=False),
        sa.Column("started_at", _UTC, nullable=False),
        sa.Column("started_by", sa.Text(), nullable=False),
        sa.Column("auto_complete", sa.Boolean(), nullable=False),
        sa.Column("deny_old", sa.Boolean(), nullable=False),
        sa.Column("reverses", sa.Boolean(), nullable=False),
        sa.Column("completion_asked_at", _UTC, nullable=True),
        sa.Column("forced", sa.Boolean(), nullable=False),
        sa.Column("addresses", sa.JSON(), nullable=False),
        sa.Column("proofs", sa.JSON(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("problem_at", _UTC, nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("cluster_id", name="pk_ca_rotation"),
        sa.ForeignKeyConstraint(["cluster_id"], ["cluster.id"], name="fk_ca_rotation_cluster_id_cluster"),
    )
    op.create_index("ix_ca_rotation_old_ca_id", "ca_rotation", ["old_ca_id"])
    op.create_index("ix_ca_rotation_state", "ca_rotation", ["state"])
    op.create_table(
        "discarded_ca",
        sa.Column("id", _HEX, nullable=False),
        sa.Column("cluster_id", _UUID, nullable=False),
        sa.Column("project_id", _HEX, nullable=False),
        sa.Column("certificate_der", sa.LargeBinary(), nullable=True),
        sa.Column("signer", sa.String(64), nullable=False),
        sa.Column("key_reference", sa.String(512), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_discarded_ca"),
    )
    op.create_index("ix_discarded_ca_cluster_id", "discarded_ca", ["cluster_id"])
    op.create_table(
        "webhook_token",
        sa.Column("id", _HEX, nullable=False),
        sa.Column("cluster_id", _UUID, nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
        sa.Column("created_at", _UTC, nullable=False),
        sa.Column("last_asked_at", _UTC, nullable=True),
        sa.Column("refused_at", _UTC, nullable=True),
        sa.Column("last_events_at", _UTC, nullable=True),
        sa.Column("last_use_at", _UTC, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_token"),
        sa.ForeignKeyConstraint(["cluster_id"], ["cluster.id"], name="fk_webhook_token_cluster_id_cluster"),
        sa.UniqueConstraint("hash", name="uq_webhook_token_hash"),
    )
    op.create_index("ix_webhook_token_cluster_id", "webhook_token", ["cluster_id"])
    op.create_table(
        "unknown_identity",
        sa.Column("cluster_id", _UUID, nullable=False),
        sa.Column("identity", sa.LargeBinary(32), nullable=False),
        sa.Column("username", sa.Text(), nullable=False),
        sa.Column("groups", sa.JSON(), nullable=False),
        sa.Column("hashes", sa.Integer(), nullable=False),
        sa.Column("fingerprints", sa.JSON(), nullable=False),
        sa.Column("first_seen_at", _UTC, nullable=False),
        sa.Column("last_seen_at", _UTC, nullable=False),
        sa.Column("last_alert_at", _UTC, nullable=False),
        sa.Column("token_hash", sa.LargeBinary(32), nullable=True),
        sa.Column("alerts_of_each", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("cluster_id", "identity", name="pk_unknown_identity"),
    )
    op.create_index("ix_unknown_identity_first_seen_at", "unknown_identity", ["first_seen_at"])
    op.create_index(
        "ix_unknown_identity_of_token",
        "unknown_identity",
        ["cluster_id", "alerts_of_each", "token_hash", "last_alert_at"],
    )
    op.create_table(
        "use_count",
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(64), nullable=False),
        sa.Column("project_id", _HEX, nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("first_at", _UTC, nullable=True),
        sa.Column("last_at", _UTC, nullable=True),
        sa.Column("reported_by", sa.String(32), nullable=True),
        sa.Column("event_at", _UTC, nullable=False),
        sa.PrimaryKeyConstraint("kind", "subject", name="pk_use_count"),
    )
    op.create_index("ix_use_count_event_at", "use_count", ["event_at"])


def _create_certificates() -> None:
    op.create_table(
        "certificate",
        sa.Column("id", _ROW_ID, nullable=False, autoincrement=True),
        sa.Column("fingerprint", sa.LargeBinary(32), nullable=False),
        sa.Column("serial", sa.String(40), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("cluster_id", _UUID, nullable=False),
        sa.Column("project_id", _HEX, nullable=False),
        sa.Column("ca_id", _HEX, nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("user_name", sa.Text(), nullable=False),
        sa.Column("groups", sa.JSON(), nullable=False),
        sa.Column("not_before", _UTC, nullable=False),
        sa.Column("not_after", _UTC, nullable=False),
        sa.Column("key_type", sa.String(16), nullable=False),
        sa.Column("key_origin", sa.String(16), nullable=False),
        sa.Column("auth_method", sa.String(16), nullable=False),
        sa.Column("source_address", sa.String(64), nullable=False),
        sa.Column("request_id", _HEX, nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("issued_at", _UTC, nullable=False),
        sa.Column("revoked_at", _UTC, nullable=True),
        sa.Column("revoked_by", sa.Text(), nullable=True),
        sa.Column("revoked_why", sa.Text(), nullable=True),
        sa.Column("first_seen_at", _UTC, nullable=True),
        sa.Column("last_seen_at", _UTC, nullable=True),
        sa.Column("rule", sa.Text(), nullable=True),
        sa.Column("credential_number", sa.String(40), nullable=False),
        sa.Column("altered_at", _UTC, nullable=True),
        sa.Column("revoked_used_at", _UTC, nullable=True),
        sa.Column("refused_at", _UTC, nullable=True),
        sa.Column("username", sa.Text(), nullable=True),
        sa.Column("access_request_id", _HEX, nullable=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_certificate"),
        sa.UniqueConstraint("credential_number", name="uq_certificate_credential_number"),
        sa.UniqueConstraint("fingerprint", name="uq_certificate_fingerprint"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_certificate_access_request_id",
        "certificate",
        ["access_request_id"],
        sqlite_where=sa.text("access_request_id IS NOT NULL"),
        postgresql_where=sa.text("access_request_id IS NOT NULL"),
    )
    op.create_index("ix_certificate_cluster_id_id", "certificate", ["cluster_id", "id"])
    op.create_index(
        "ix_certificate_cluster_id_not_after_user_id", "certificate", ["cluster_id", "not_after", "user_id"]
    )
    op.create_index("ix_certificate_not_after_revoked_at", "certificate", ["not_after", "revoked_at"])
    op.create_index("ix_certificate_project_id_id", "certificate", ["project_id", "id"])
    op.create_index(
        "ix_certificate_revoked_used_at",
        "certificate",
        ["revoked_used_at"],
        sqlite_where=sa.text("revoked_used_at IS NOT NULL"),
        postgresql_where=sa.text("revoked_used_at IS NOT NULL"),
    )
    op.create_index("ix_certificate_serial", "certificate", ["serial"])
    op.create_index("ix_certificate_user_id_id", "certificate", ["user_id", "id"])
    op.create_table(
        "revocation",
        sa.Column("id", _ROW_ID, nullable=False, autoincrement=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("changed", sa.BigInteger(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(32), nullable=True),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("cluster_id", _UUID, nullable=False),
        sa.Column("project_id", _HEX, nullable=True),
        sa.Column("at", _UTC, nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("reason", sa.String(32), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("proved", sa.Boolean(), nullable=False),
        sa.Column("undone_at", _UTC, nullable=True),
        sa.Column("undone_by", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_revocation"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_revocation_changed", "revocation", ["changed"])
    op.create_index("ix_revocation_fingerprint", "revocation", ["fingerprint"])
    op.create_index("ix_revocation_project_id_id", "revocation", ["project_id", "id"])
    op.create_index(
        "ix_revocation_user_id_cluster_id_fingerprint_epoch",
        "revocation",
        ["user_id", "cluster_id", "fingerprint", "epoch"],
    )


def _create_access_requests() -> None:
    op.create_table(
        "access_request",
        sa.Column("id", _HEX, nullable=False),
        sa.Column("project_id", _HEX, nullable=False),
        sa.Column("cluster_id", _UUID, nullable=False),
        sa.Column("cluster_name", sa.String(128), nullable=False),
        sa.Column("project_name", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("user_name", sa.Text(), nullable=False),
        sa.Column("groups", sa.JSON(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("offered_groups", sa.JSON(), nullable=False),
        sa.Column("duration", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("ticket", sa.Text(), nullable=True),
        sa.Column("conditions", sa.JSON(), nullable=False),
        sa.Column("before_approval", sa.Boolean(), nullable=False),
        sa.Column("claim_within", sa.BigInteger(), nullable=False),
        sa.Column("created_at", _UTC, nullable=False),
        sa.Column("approve_by", _UTC, nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("approved_at", _UTC, nullable=True),
        sa.Column("claim_by", _UTC, nullable=True),
        sa.Column("started_at", _UTC, nullable=True),
        sa.Column("ends_at", _UTC, nullable=True),
        sa.Column("extension", sa.BigInteger(), nullable=True),
        sa.Column("extension_reason", sa.Text(), nullable=True),
        sa.Column("extension_state", sa.String(8), nullable=True),
        sa.Column("closed_at", _UTC, nullable=True),
        sa.Column("closed_by", sa.Text(), nullable=True),
        sa.Column("closed_why", sa.Text(), nullable=True),
        sa.Column("open_for", sa.Text(), nullable=True),
        sa.Column("due_at", _UTC, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_access_request"),
        sa.UniqueConstraint("open_for", name="uq_access_request_open_for"),
    )
    op.create_index("ix_access_request_cluster_id", "access_request", ["cluster_id"])
    op.create_index("ix_access_request_due_at", "access_request", ["due_at"])
    op.create_index(
        "ix_access_request_project_id_created_at_id", "access_request", ["project_id", "created_at", "id"]
    )
    op.create_index(
        "ix_access_request_started_at",
        "access_request",
        ["started_at"],
        sqlite_where=sa.text("approved_at IS NULL"),
        postgresql_where=sa.text("approved_at IS NULL"),
    )
    op.create_index("ix_access_request_user_id", "access_request", ["user_id"])
    op.create_table(
        "access_decision",
        sa.Column("request_id", _HEX, nullable=False),
        sa.Column("part", sa.String(9), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("by_name", sa.Text(), nullable=False),
        sa.Column("at", _UTC, nullable=False),
        sa.Column("approves", sa.Boolean(), nullable=False),
        sa.Column("met", sa.JSON(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("request_id", "part", "by", name="pk_access_decision"),
        sa.ForeignKeyConstraint(
            ["request_id"], ["access_request.id"], name="fk_access_decision_request_id_access_request"
        ),
    )
    op.create_table(
        "username",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_username"),
    )


def _create_audit_log() -> None:
    op.create_table(
        "audit_event",
        sa.Column("id", _ROW_ID, nullable=False, autoincrement=True),
        sa.Column("at", _UTC, nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("project_id", _HEX, nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("salt", sa.LargeBinary(16), nullable=False),
        sa.Column("commitment", sa.LargeBinary(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_event"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "audit_place",
        sa.Column("leaf_index", _ROW_ID, nullable=False, autoincrement=False),
        sa.Column("event_id", sa.BigInteger(), nullable=False),
        sa.Column("project_id", _HEX, nullable=True),
        sa.PrimaryKeyConstraint("leaf_index", name="pk_audit_place"),
    )
    op.create_index("ix_audit_place_project_id_leaf_index", "audit_place", ["project_id", "leaf_index"])
    op.create_index("uq_audit_place_event_id", "audit_place", ["event_id"], unique=True)
    op.create_table(
        "audit_unsealed",
        sa.Column("event_id", _ROW_ID, nullable=False, autoincrement=False),
        sa.Column("project_id", _HEX, nullable=True),
        sa.Column("commitment", sa.LargeBinary(32), nullable=False),
        sa.PrimaryKeyConstraint("event_id", name="pk_audit_unsealed"),
    )
    op.create_table(
        "audit_log",
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("public_key", sa.LargeBinary(32), nullable=False),
        sa.Column("sealed_key", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
    )
    op.create_table(
        "audit_tile",
        sa.Column("level", sa.SmallInteger(), nullable=False, autoincrement=False),
        sa.Column("index", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("hashes", sa.LargeBinary(8192), nullable=False),
        sa.PrimaryKeyConstraint("level", "index", name="pk_audit_tile"),
    )
    op.create_table(
        "audit_checkpoint",
        sa.Column("size", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("at", _UTC, nullable=False),
        sa.Column("root", sa.LargeBinary(32), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("size", name="pk_audit_checkpoint"),
    )
    op.create_index("ix_audit_checkpoint_at", "audit_checkpoint", ["at"])
    _create_audit_trigger()


def _create_audit_trigger() -> None:
    """Let each new audit event wait in `audit_unsealed` until it is sealed."""
    trigger = "CREATE TRIGGER audit_event_unsealed AFTER INSERT ON audit_event"
    body = (
        "BEGIN INSERT INTO audit_unsealed (event_id, project_id, commitment)"
        " VALUES (NEW.id, NEW.project_id, NEW.commitment);"
    )
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"{trigger} {body} END")
        return
    function = "CREATE FUNCTION audit_event_unsealed() RETURNS trigger LANGUAGE plpgsql AS"
    op.execute(f"{function} $$ {body} RETURN NULL; END $$")
    op.execute(f"{trigger} FOR EACH ROW EXECUTE FUNCTION audit_event_unsealed()")
