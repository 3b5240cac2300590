"""Databases with older and newer schemas."""

import re
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path

from clustercert.model import CertificateRecord
from clustercert.store.engine import migrate
from clustercert.store.engine.database import Database
from support.stores import Store, event, patient, rows

NEXT = f"{int(migrate.head()) + 1:04}"


NEXT_MIGRATION = f"""
import sqlalchemy as sa
from alembic import op

revision = "{NEXT}"
down_revision = "{migrate.head()}"
oldest_program = "%s"

def upgrade():
    op.add_column("certificate", sa.Column("note", sa.Text(), nullable=True))
    op.create_table("note", sa.Column("id", sa.Integer(), primary_key=True))
"""


@asynccontextmanager
async def opened(store: Store) -> AsyncIterator[Database]:
    database = patient(store.url)
    try:
        yield database
    finally:
        await database.close()


def with_the_next(folder: Path, *, oldest_program: str) -> Path:
    """Return the migrations of a later program."""
    copy = Path(shutil.copytree(migrate.MIGRATIONS, folder / "next"))
    (copy / "versions" / f"{NEXT}_next.py").write_text(NEXT_MIGRATION % oldest_program)
    return copy


def up_to(revision: str, folder: Path) -> Path:
    """Return the migrations of the program with this revision."""
    copy = Path(shutil.copytree(migrate.MIGRATIONS, folder / revision))
    for path in copy.glob("versions/0*.py"):
        if path.name[:4] > revision:
            path.unlink()
    return copy


def ledger_row(record: CertificateRecord, *unheard_of: str) -> dict[str, object]:
    """Return a certificate's row as an older program wrote it: without these columns."""
    return {name: value for name, value in asdict(record).items() if name not in unheard_of}


def columns(store: Store) -> object:
    """Return the columns in the database."""
    if store.file is not None:
        return schema(store.file)
    query = "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'public'"
    indexes = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'"
    return sorted(map(str, store.rows(query))), sorted(map(str, store.rows(indexes)))


def schema(file: Path) -> dict[object, list[str]]:
    """Return the parts of the statements in SQLite's schema, without their order."""
    statements = rows(
        file, "SELECT name, sql FROM sqlite_master WHERE sql NOT NULL AND name NOT LIKE 'alembic%'"
    )
    return {
        name: sorted(
            filter(None, (re.sub(r"\s+", " ", part).strip(" ()") for part in re.split("[\n,]", str(sql))))
        )
        for name, sql in statements
    }


async def record(database: Database) -> None:
    """Record an event as all programs so far do."""
    async with database.transaction(replace(event(), project_id=secrets.choice([None, "1" * 32]))):
        pass
