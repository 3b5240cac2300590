"""${message}."""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}

# The revision of the oldest program that can read and write this schema, during the migration and afterwards. Use
# this revision if no older program can do so.
oldest_program = ${repr(up_revision)}


# No downgrade, because an older program can't interpret newer rows. Restore a backup instead.
def upgrade() -> None:
    ${upgrades if upgrades else "pass"}
