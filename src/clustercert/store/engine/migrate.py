"""Upgrades a database's schema, and checks that this program can use the schema.

A program of revision N needs schema N. The program also works on a newer schema whose migrations declare N or an older
revision as `oldest_program`. So a rolling upgrade migrates the schema first and then replaces the replicas one by one.
The program refuses a newer schema if a tool other than `upgrade` set the schema's revision. The program also refuses
the schemas of earlier builds, which are older than the first migration.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from importlib.resources import files
from pathlib import Path

from sqlalchemy import Connection, column, insert, inspect, select, table, text, update
from sqlalchemy.exc import IntegrityError, ProgrammingError

from clustercert.model.errors import SchemaError, Unavailable
from clustercert.store import tables
from clustercert.store.engine.database import Database

MIGRATIONS = Path(str(files("clustercert.store") / "migrations"))

_migration = tables.migration
# Alembic's table, which contains the current revision.
_version = table("alembic_version", column("version_num"))
# Source: PostgreSQL, appendix A, error codes.
_DUPLICATE_TABLE, _LOCK_NOT_AVAILABLE = "42P07", "55P03"
# While a migration waits for a table's lock, all queries on the table wait too. So the migration waits only briefly.
LOCK_SECONDS = 2


async def upgrade(
    database: Database,
    migrations: Path = MIGRATIONS,
    report_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> None:
    """Bring the schema to the revision that this program needs, each migration in its own transaction.

    Several processes may run this function at once: one migrates, the others wait and find nothing to do. Raises
    SchemaError if the database is too new or too old for this program, or if other transactions keep a table locked.
    Raises Unavailable.

    Args:
        report_progress: called before each migration with the number of finished migrations and the total number.
    """
    await database.refuse_shared_sessions()
    _refuse_earlier_build(await current(database), _known(migrations))
    try:
        await _create_lock(database)
        done = False
        while not done:
            async with database.migration() as connection:
                # Lock a row, because not every PostgreSQL-compatible engine has other kinds of locks.
                await connection.execute(select(_migration.c.id).with_for_update())
                if database.url.get_backend_name() == "postgresql":
                    await connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
                done = await connection.run_sync(_upgrade_once, migrations, report_progress)
    except Unavailable as failure:
        if getattr(getattr(failure.__cause__, "orig", None), "sqlstate", None) != _LOCK_NOT_AVAILABLE:
            raise
        raise SchemaError(
            f"A migration waited {LOCK_SECONDS} seconds for a table that another transaction has locked, such as a"
            " backup or a long query. The migration was rolled back. Run `clustercert db upgrade` again after that"
            " transaction."
        ) from failure


async def current(database: Database) -> str | None:
    """Return the revision of the database's schema, or None if the database has no schema. Raises Unavailable."""
    async with database.read() as connection:
        return await connection.run_sync(_revision)


def head(migrations: Path = MIGRATIONS) -> str:
    """Return the revision that this program needs. Raises SchemaError if the migrations are missing."""
    return max(_known(migrations))


@contextlib.asynccontextmanager
async def opened(url: str, data_dir: Path) -> AsyncIterator[Database]:
    """Open a database for the `with` block.

    Raises Unavailable, or SchemaError if this program can't use the database's schema.
    """
    database = Database(url, data_dir=data_dir)
    try:
        await check(database)
        yield database
    finally:
        await database.close()


async def check(database: Database, migrations: Path = MIGRATIONS) -> None:
    """Raise SchemaError with advice if this program can't use the database's schema.

    Raises StoreFault if a connection pooler shares sessions, or another Unavailable.
    """
    await database.refuse_shared_sessions()
    async with database.read() as connection:
        await connection.run_sync(_check, _known(migrations))


def _check(connection: Connection, known: Collection[str]) -> None:
    has, needs = _revision(connection), max(known)
    if has is None:
        raise SchemaError("The database has no schema yet. Run `clustercert db upgrade`.")
    _refuse_earlier_build(has, known)
    if has in known and has != needs:
        raise SchemaError(
            f"The database has schema {has} and this program needs {needs}. Run `clustercert db upgrade`."
        )
    if has not in known and not _allows(connection, has, needs):
        raise SchemaError(
            f"The database has schema {has}, which is too new for this program. Run the newer program that created the"
            " schema."
        )


def _refuse_earlier_build(has: str | None, known: Collection[str]) -> None:
    """Raise SchemaError if the database's revision is older than the first migration."""
    if has is not None and has < min(known):
        raise SchemaError(
            f"The database has schema {has} of a build before version 0.1.0, which can't be upgraded: set"
            " `database_url` to an empty database or `data_dir` to an empty folder."
        )


async def _create_lock(database: Database) -> None:
    """Create the table and the row that a migration locks."""
    with _ignore_if_exists():
        async with database.transaction() as connection:
            await connection.run_sync(_migration.create, checkfirst=True)
    with _ignore_if_exists():
        async with database.transaction() as connection:
            if (await connection.execute(select(_migration.c.id))).first() is None:
                await connection.execute(insert(_migration).values(id=1, oldest_program="", revision=""))


@contextlib.contextmanager
def _ignore_if_exists() -> Iterator[None]:
    """Ignore the error that an object already exists, because another process may create it at the same time."""
    try:
        yield
    except IntegrityError:
        pass
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != _DUPLICATE_TABLE:
            raise


def _upgrade_once(
    connection: Connection, migrations: Path, report_progress: Callable[[int, int], None]
) -> bool:
    """Run the next migration. Returns whether no migration is left."""
    # Alembic is imported here, because the import takes 70 ms and 6 MB, and workers only check the schema.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    known, has = sorted(_known(migrations)), _revision(connection)
    if has is not None and has not in known:
        # A newer schema is not changed, whether or not this program can use it.
        _check(connection, known)
        return True
    following = next((revision for revision in known if has is None or revision > has), None)
    if following is None:
        return True
    report_progress(known.index(following), len(known))
    config = Config()
    # Escape percent signs, because the configuration parser would interpolate them.
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, following)
    made = ScriptDirectory.from_config(config).get_revision(following)
    values = {"oldest_program": made.module.oldest_program, "revision": following}
    connection.execute(update(_migration).values(values))
    return following == known[-1]


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(_version.name):
        return None
    return connection.execute(select(_version.c.version_num)).scalar()


def _allows(connection: Connection, revision: str, program: str) -> bool:
    """Whether the migration to a newer schema declared that a program of this revision can use the newer schema."""
    if not inspect(connection).has_table(_migration.name):
        return False
    query = select(_migration.c.oldest_program).where(_migration.c.revision == revision)
    oldest = connection.execute(query).scalar()
    return oldest is not None and oldest <= program


def _known(migrations: Path) -> set[str]:
    """Return the revisions in a folder of migrations, from their file names. Raises SchemaError for an empty folder."""
    revisions = {path.name.partition("_")[0] for path in migrations.glob("versions/[0-9]*_*.py")}
    if not revisions:
        raise SchemaError("The database migrations are missing from this installation. Install it again.")
    return revisions
