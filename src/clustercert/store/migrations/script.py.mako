"""${message}."""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


# The way back is a backup: an older program can't know what newer rows mean.
def upgrade() -> None:
    ${upgrades if upgrades else "pass"}
