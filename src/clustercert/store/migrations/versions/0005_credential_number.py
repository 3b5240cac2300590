"""Adds credential numbers, which certificates contain in one of their groups, and a table of unknown identities.

Adding columns locks the ledger for readers too, but only briefly. Migration 0006 creates the indexes on them.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# An older version recognizes certificates only by their hash, which their holders can change, so it must not start on
# this schema. One that is already running continues; the certificates that it records have no credential number.
oldest_program = "0005"

TIME = sa.DateTime(timezone=True)
# Number of fingerprints stored in a row, to recognize new ones.
KEPT_HASHES = 16


def upgrade() -> None:
    op.add_column("certificate", sa.Column("credential_number", sa.String(40), nullable=True))
    op.add_column("certificate", sa.Column("altered_at", TIME, nullable=True))
    op.create_table(
        "unknown_identity",
        sa.Column("cluster_id", sa.String(36), nullable=False),
        sa.Column("identity", sa.LargeBinary(32), nullable=False),
        sa.Column("username", sa.Text(), nullable=False),
        sa.Column("groups", sa.JSON(), nullable=False),
        sa.Column("hashes", sa.Integer(), nullable=False),
        sa.Column("fingerprints", sa.JSON(), nullable=False),
        sa.Column("first_seen_at", TIME, nullable=False),
        sa.Column("last_seen_at", TIME, nullable=False),
        sa.Column("last_alert_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("cluster_id", "identity", name="pk_unknown_identity"),
    )
    _copy_unknown_credentials()


def _copy_unknown_credentials() -> None:
    """Add one row per cluster, user name and groups. Keeps the old table for older replicas that still run."""
    names = ("cluster_id", "username", "first_seen_at", "last_seen_at")
    old = sa.table(
        "unknown_credential",
        *(sa.column(name) for name in (*names, "fingerprint")),
        sa.column("groups", sa.JSON()),
    )
    new = sa.table(
        "unknown_identity",
        *(sa.column(name) for name in (*names, "identity", "hashes", "last_alert_at")),
        sa.column("groups", sa.JSON()),
        sa.column("fingerprints", sa.JSON()),
    )
    connection = op.get_bind()
    rows = connection.execute(sa.select(old).order_by(old.c.cluster_id, old.c.last_seen_at))
    for _, of_cluster in itertools.groupby(rows.mappings(), lambda row: row["cluster_id"]):
        connection.execute(sa.insert(new), list(_merged(of_cluster)))


def _merged(rows: Iterable[Any]) -> Iterator[dict[str, object]]:
    by_identity: dict[bytes, list[Any]] = {}
    for row in rows:
        text = json.dumps([row["username"], sorted(set(row["groups"]))])
        by_identity.setdefault(hashlib.sha256(text.encode()).digest(), []).append(row)
    for identity, same in by_identity.items():
        yield {
            "cluster_id": same[0]["cluster_id"],
            "identity": identity,
            "username": same[0]["username"],
            "groups": same[0]["groups"],
            "hashes": len(same),
            "fingerprints": [bytes(row["fingerprint"]).hex() for row in same[-KEPT_HASHES:]],
            "first_seen_at": min(row["first_seen_at"] for row in same),
            "last_seen_at": max(row["last_seen_at"] for row in same),
            "last_alert_at": max(row["first_seen_at"] for row in same),
        }
