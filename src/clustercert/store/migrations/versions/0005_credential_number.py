"""Credential numbers, which certificates carry in a signed group; unknown credentials by user name and groups.

Nothing here takes long: the new columns lock the ledger, also for who only reads it. Their indexes are made by 0006.
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

# An older program recognises certificates by their hash alone, which their holders can change, so none may start here.
# One that runs already goes on; what it records has no credential number.
oldest_program = "0005"

TIME = sa.DateTime(timezone=True)
# As many hashes as a row keeps to tell new ones from those that were seen.
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
    """One row for each user name and groups in a cluster. The old table stays for replicas that still run."""
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
        said = json.dumps([row["username"], sorted(set(row["groups"]))])
        by_identity.setdefault(hashlib.sha256(said.encode()).digest(), []).append(row)
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
