"""Tables of the built-in identity service: domains, projects, users, groups, roles, tokens, access keys."""

from sqlalchemy import JSON, Boolean, Column, ForeignKey, Index, LargeBinary, String, Text, UniqueConstraint

from clustercert.store.tables.columns import Hex, Utc, table

domain = table(
    "domain",
    Column("id", Hex, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("enabled", Boolean, nullable=False),
)

project = table(
    "project",
    Column("id", Hex, primary_key=True),
    Column("domain_id", ForeignKey("domain.id"), nullable=False),
    Column("name", String(64), nullable=False),
    Column("description", String(255), nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("labels", JSON, nullable=False),
    UniqueConstraint("domain_id", "name"),
    Index(None, "name"),
)

user = table(
    "user",
    Column("id", Hex, primary_key=True),
    Column("domain_id", ForeignKey("domain.id"), nullable=False),
    Column("name", String(255), nullable=False),
    Column("password_hash", String(255), nullable=True),
    Column("enabled", Boolean, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("labels", JSON, nullable=False),
    UniqueConstraint("domain_id", "name"),
)

# Users of OIDC issuers and Keystone who have logged in, with their last name. Their ids have 32 or 64 hex digits.
# `issuer` is the URL of the issuer or Keystone, and `domain` its name in the settings. Logins from before
# `logins_ended_at` are refused.
federated_user = table(
    "federated_user",
    Column("id", String(64), primary_key=True),
    Column("name", Text, nullable=False, index=True),
    Column("domain", Text, nullable=False),
    Column("issuer", Text, nullable=False),
    Column("logins_ended_at", Utc, nullable=True),
)

# Keystone groups. The Kubernetes groups in a certificate are plain strings, without a table.
group = table(
    "group",
    Column("id", Hex, primary_key=True),
    Column("domain_id", ForeignKey("domain.id"), nullable=False),
    Column("name", String(64), nullable=False),
    Column("labels", JSON, nullable=False),
    UniqueConstraint("domain_id", "name"),
)

group_member = table(
    "group_member",
    Column("group_id", ForeignKey("group.id"), primary_key=True),
    Column("user_id", ForeignKey("user.id"), primary_key=True, index=True),
)

role = table(
    "role",
    Column("id", Hex, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
)

# actor_id: the id of a user or group.
role_assignment = table(
    "role_assignment",
    Column("actor_id", Hex, primary_key=True),
    Column("project_id", ForeignKey("project.id"), primary_key=True, index=True),
    Column("role_id", ForeignKey("role.id"), primary_key=True),
)

# Service-wide role assignments, such as operator.
service_role = table(
    "service_role",
    Column("actor_id", Hex, primary_key=True),
    Column("role_id", ForeignKey("role.id"), primary_key=True),
)

token = table(
    "token",
    Column("hash", LargeBinary(32), primary_key=True),
    Column("user_id", ForeignKey("user.id"), nullable=False, index=True),
    Column("project_id", ForeignKey("project.id"), nullable=True),
    Column("domain_id", ForeignKey("domain.id"), nullable=True),
    Column("methods", JSON, nullable=False),
    Column("issued_at", Utc, nullable=False),
    Column("expires_at", Utc, nullable=False, index=True),
)

# The networks from which users have logged in by password; their logins come first while many wait. network: an IPv4
# address or an IPv6 /64.
login_network = table(
    "login_network",
    Column("user_id", ForeignKey("user.id"), primary_key=True),
    Column("network", String(64), primary_key=True),
    Column("last_login_at", Utc, nullable=False, index=True),
)

access_key = table(
    "access_key",
    Column("id", String(40), primary_key=True),
    Column("user_id", ForeignKey("user.id"), nullable=False, index=True),
    Column("sealed_secret", LargeBinary, nullable=False),
    Column("description", String(255), nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("security_token_hash", LargeBinary(32), nullable=True),
    Column("expires_at", Utc, nullable=True, index=True),
)
