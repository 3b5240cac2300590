"""Moves the leaf indexes of audit events to a narrow table, and adds a table of unsealed events."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# An older program uses the column that is dropped here, so it must not start. An already running one continues to issue
# certificates, and a newer program seals their events. But it can no longer list or seal events.
oldest_program = "0007"

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

QUEUE_EVENTS = (
    (
        "sqlite",
        (
            "CREATE TRIGGER audit_event_unsealed AFTER INSERT ON audit_event BEGIN"
            " INSERT INTO audit_unsealed (event_id, project_id, commitment)"
            " VALUES (NEW.id, NEW.project_id, NEW.commitment); END"
        ),
    ),
    (
        "postgresql",
        (
            "CREATE FUNCTION audit_event_unsealed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " INSERT INTO audit_unsealed (event_id, project_id, commitment)"
            " VALUES (NEW.id, NEW.project_id, NEW.commitment); RETURN NULL; END $$"
        ),
    ),
    (
        "postgresql",
        (
            "CREATE TRIGGER audit_event_unsealed AFTER INSERT ON audit_event"
            " FOR EACH ROW EXECUTE FUNCTION audit_event_unsealed()"
        ),
    ),
)


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    op.create_table(
        "audit_place",
        sa.Column("leaf_index", ROW_ID, autoincrement=False, nullable=False),
        sa.Column("event_id", sa.BigInteger(), nullable=False),
        sa.Column("project_id", sa.String(32), nullable=True),
        sa.PrimaryKeyConstraint("leaf_index", name="pk_audit_place"),
    )
    op.create_table(
        "audit_unsealed",
        sa.Column("event_id", ROW_ID, autoincrement=False, nullable=False),
        sa.Column("project_id", sa.String(32), nullable=True),
        sa.Column("commitment", sa.LargeBinary(32), nullable=False),
        sa.PrimaryKeyConstraint("event_id", name="pk_audit_unsealed"),
    )
    _copy_places("leaf_index IS NOT NULL")
    op.create_index("uq_audit_place_event_id", "audit_place", ["event_id"], unique=True)
    op.create_index("ix_audit_place_project_id_leaf_index", "audit_place", ["project_id", "leaf_index"])
    if dialect == "postgresql":
        # Copy the rest under a lock, because older replicas may have recorded and sealed events until now.
        op.execute("LOCK TABLE audit_event IN ACCESS EXCLUSIVE MODE")
        _copy_places("leaf_index > (SELECT coalesce(max(leaf_index), -1) FROM audit_place)")
    op.execute(
        "INSERT INTO audit_unsealed (event_id, project_id, commitment)"
        " SELECT id, project_id, commitment FROM audit_event WHERE leaf_index IS NULL ORDER BY id"
    )
    for of_dialect, statement in QUEUE_EVENTS:
        if of_dialect == dialect:
            op.execute(statement)
    for name in (
        "ix_audit_event_leaf_index",
        "ix_audit_event_project_id_leaf_index",
        "ix_audit_event_unsealed",
    ):
        op.drop_index(name, "audit_event")
    op.drop_column("audit_event", "leaf_index")


def _copy_places(which: str) -> None:
    op.execute(
        "INSERT INTO audit_place (leaf_index, event_id, project_id)"  # noqa: S608 - only constants from this module
        f" SELECT leaf_index, id, project_id FROM audit_event WHERE {which} ORDER BY leaf_index"
    )
