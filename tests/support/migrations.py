"""A later program with one more migration."""

import shutil
from pathlib import Path

import clustercert
from clustercert.store.engine import migrate

NEXT = f"{int(migrate.head()) + 1:04}"
# More columns, indexes and tables, and all that was there stays, so older programs can work with it.
_NEXT_MIGRATION = f"""
import sqlalchemy as sa
from alembic import op

revision = "{NEXT}"
down_revision = "{migrate.head()}"
oldest_program = "%s"

def upgrade():
    op.add_column("certificate", sa.Column("colour", sa.Text(), nullable=True))
    op.create_index("ix_certificate_colour", "certificate", ["colour"])
    op.create_table("colour", sa.Column("name", sa.Text(), primary_key=True))
"""


def with_the_next(folder: Path, *, oldest_program: str) -> Path:
    """Return the migrations of a program with one more than this one."""
    copy = Path(shutil.copytree(migrate.MIGRATIONS, folder / "next"))
    _add_the_next(copy, oldest_program)
    return copy


def next_program(folder: Path, *, oldest_program: str) -> dict[str, str]:
    """Create a copy of this program with one more migration. Returns the variables with which Python runs the copy."""
    package = Path(clustercert.__file__).parent
    copy = Path(shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__")))
    _add_the_next(copy / migrate.MIGRATIONS.relative_to(package), oldest_program)
    return {"PYTHONPATH": str(folder)}


def _add_the_next(migrations: Path, oldest_program: str) -> None:
    (migrations / "versions" / f"{NEXT}_next.py").write_text(_NEXT_MIGRATION % oldest_program)
