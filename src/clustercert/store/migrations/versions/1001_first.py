"""The first schema. Databases from earlier builds have schemas 0001 to 0012, and can't be upgraded."""

from alembic import op

from clustercert.store import tables

revision = "1001"
down_revision = None
branch_labels = None
depends_on = None

oldest_program = "1001"


# This migration has no downgrade, because an older program can't interpret newer rows. Restore a backup instead.
def upgrade() -> None:
    # Create the tables as `tables` declares them now. If you change `tables` in a later migration, first replace the
    # call below by statements that create the tables of this revision.
    made = [table for table in tables.metadata.sorted_tables if table is not tables.migration]
    # An existing table is an error: it belongs to another application.
    tables.metadata.create_all(op.get_bind(), made, checkfirst=False)
    op.bulk_insert(tables.generation, [{"id": 1, "value": 0}])
