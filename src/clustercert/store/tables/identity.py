"""Who there is, and what they may show."""

from sqlalchemy import JSON, Boolean, Column, ForeignKey, Index, LargeBinary, String, Table, UniqueConstraint

from clustercert.store.tables.columns import Hex, Utc, metadata

domain = Table(
    "domain",
    metadata,
    Column("id", Hex, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("enabled", Boolean, nullable=False),
)

project = Table(
    "project",
    metadata,
    Column("id", Hex, primary_key=True),
    Column("domain_id", ForeignKey("domain.id"), nullable=False),
    Column("name", String(64), nullable=False),
    Column("description", String(255), nullable=False),
    Column("enabled", Boolean, nullable=False),
    UniqueConstraint("domain_id", "name"),
)

user = Table(
    "user",
    metadata,
    Column("id", Hex, primary_key=True),
    Column("domain_id", ForeignKey("domain.id"), nullable=False),
    Column("name", String(255), nullable=False),
    Column("password_hash", String(255), nullable=True),
    Column("enabled", Boolean, nullable=False),
    Column("created_at", Utc, nullable=False),
    UniqueConstraint("domain_id", "name"),
)

# "group" is a Keystone user group; the Kubernetes groups of a certificate are only text.
group = Table(
    "group",
    metadata,
    Column("id", Hex, primary_key=True),
    Column("domain_id", ForeignKey("domain.id"), nullable=False),
    Column("name", String(64), nullable=False),
    UniqueConstraint("domain_id", "name"),
)

group_member = Table(
    "group_member",
    metadata,
    Column("group_id", ForeignKey("group.id"), primary_key=True),
    Column("user_id", ForeignKey("user.id"), primary_key=True),
    Index(None, "user_id"),
)

role = Table(
    "role",
    metadata,
    Column("id", Hex, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
)

# actor_id: a user's or a group's id.
role_assignment = Table(
    "role_assignment",
    metadata,
    Column("actor_id", Hex, primary_key=True),
    Column("project_id", ForeignKey("project.id"), primary_key=True),
    Column("role_id", ForeignKey("role.id"), primary_key=True),
    Index(None, "project_id"),
)

# Roles that hold for the whole service, such as operator.
service_role = Table(
    "service_role",
    metadata,
    Column("actor_id", Hex, primary_key=True),
    Column("role_id", ForeignKey("role.id"), primary_key=True),
)

token = Table(
    "token",
    metadata,
    Column("hash", LargeBinary(32), primary_key=True),
    Column("user_id", ForeignKey("user.id"), nullable=False),
    Column("project_id", ForeignKey("project.id"), nullable=True),
    Column("domain_id", ForeignKey("domain.id"), nullable=True),
    Column("methods", JSON, nullable=False),
    Column("issued_at", Utc, nullable=False),
    Column("expires_at", Utc, nullable=False),
    Index(None, "user_id"),
    Index(None, "expires_at"),
)

access_key = Table(
    "access_key",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("user_id", ForeignKey("user.id"), nullable=False),
    Column("sealed_secret", LargeBinary, nullable=False),
    Column("description", String(255), nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("security_token_hash", LargeBinary(32), nullable=True),
    Column("expires_at", Utc, nullable=True),
    Index(None, "user_id"),
    Index(None, "expires_at"),
)
