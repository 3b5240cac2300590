"""${message}."""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}

# The revision that the oldest program needs which works with this schema, reading and writing, while it is being made
# and afterwards; this one, if none does.
oldest_program = ${repr(up_revision)}


# The way back is a backup: an older program can't know what newer rows mean.
def upgrade() -> None:
    ${upgrades if upgrades else "pass"}
