"""The schema of a database: which one it has, which one this program needs, and the way there.

A program of revision N works on schema N and, once that is made, on newer ones whose migrations say that they leave it
what it needs. So replicas are replaced one by one while the service runs: first the schema, then the programs.
"""

import contextlib
from collections.abc import Collection, Iterator
from importlib.resources import files
from pathlib import Path

from sqlalchemy import Connection, column, insert, inspect, select, table, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError

from clustercert.errors import SchemaError, Unavailable
from clustercert.store import tables
from clustercert.store.database import Database

MIGRATIONS = Path(str(files("clustercert.store") / "migrations"))

_migration = tables.migration
# Alembic's own.
_version = table("alembic_version", column("version_num"))
# Source: PostgreSQL, appendix A, error codes.
_FORBIDDEN, _DUPLICATE_TABLE, _LOCK_NOT_AVAILABLE = "42501", "42P07", "55P03"
# A migration that waits for a table's lock keeps everybody behind it waiting, API servers' questions too.
LOCK_SECONDS = 2


async def upgrade(database: Database, migrations: Path = MIGRATIONS) -> None:
    """Bring the schema up to what this program needs, each migration in a transaction of its own.

    Several processes may do it at once: one works, the others wait and find nothing left to do.
    Raises SchemaError where the database is newer than this program can use, or other transactions keep a table
    locked; Unavailable.
    """
    try:
        await _make_lock(database)
        done = False
        while not done:
            async with database.migration() as connection:
                # A lock on a row: not every engine that speaks PostgreSQL's protocol has locks on anything else.
                await connection.execute(select(_migration.c.id).with_for_update())
                if database.url.get_backend_name() == "postgresql":
                    await connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
                done = await connection.run_sync(_upgrade_once, migrations)
    except Unavailable as failure:
        if getattr(getattr(failure.__cause__, "orig", None), "sqlstate", None) != _LOCK_NOT_AVAILABLE:
            raise
        raise SchemaError(
            f"Other transactions have kept a table locked for {LOCK_SECONDS} seconds, such as a backup or a long query."
            " Nothing is half done. Run `clustercert db upgrade` again when they have ended."
        ) from failure
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != _FORBIDDEN:
            raise
        raise SchemaError(
            f"The database's role may not make or change tables: {_words(error)}. Make it the owner of the database, "
            "or grant it CREATE on the schema."
        ) from error


async def current(database: Database) -> str | None:
    """The revision that the database has; None where it has none. Raises Unavailable."""
    async with database.read() as connection:
        return await connection.run_sync(_revision)


def head(migrations: Path = MIGRATIONS) -> str:
    """The revision that this program needs. Raises SchemaError where the migrations are not there."""
    return max(_known(migrations))


async def check(database: Database, migrations: Path = MIGRATIONS) -> None:
    """Raise SchemaError, which says what to do, unless this program can use the schema that the database has."""
    async with database.read() as connection:
        has, oldest = await connection.run_sync(_revision), await connection.run_sync(_oldest_program)
    _check(has, head(migrations), _known(migrations), oldest)


def _check(has: str | None, needs: str, known: Collection[str], oldest_program: str | None = None) -> None:
    if has is None:
        raise SchemaError("The database has no schema yet. Run `clustercert db upgrade`.")
    if has == needs:
        return
    if has in known:
        raise SchemaError(
            f"The database has schema {has} and this program needs {needs}. Run `clustercert db upgrade`."
        )
    if oldest_program is None or oldest_program > needs:
        raise SchemaError(
            f"The database has schema {has}, which this program does not know: a newer one made it. "
            "Run that newer program."
        )


async def _make_lock(database: Database) -> None:
    """Make the row that a migration locks, in transactions of its own: there is nothing to wait for before."""
    with _made_by_another():
        async with database.write() as connection:
            await connection.run_sync(_migration.create, checkfirst=True)
    with _made_by_another():
        async with database.write() as connection:
            if (await connection.execute(select(_migration.c.id))).first() is None:
                await connection.execute(insert(_migration).values(id=1, oldest_program=""))


@contextlib.contextmanager
def _made_by_another() -> Iterator[None]:
    """Of several that make a thing at once, all but one are told that it is there."""
    try:
        yield
    except IntegrityError:
        pass
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != _DUPLICATE_TABLE:
            raise


def _upgrade_once(connection: Connection, migrations: Path) -> bool:
    """Make the next migration; whether none is left."""
    # What only checks the schema, as every start of a worker does, is spared its 70 ms and 6 MB.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    known, has = sorted(_known(migrations)), _revision(connection)
    if has is not None and has not in known:
        # A newer program's schema is left alone, whether this one can use it or not.
        _check(has, known[-1], (), _oldest_program(connection))
        return True
    following = next((revision for revision in known if has is None or revision > has), None)
    if following is None:
        return True
    config = Config()
    # A percent sign in the option would be an interpolation.
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, following)
    made = ScriptDirectory.from_config(config).get_revision(following)
    connection.execute(update(_migration).values(oldest_program=made.module.oldest_program))
    return following == known[-1]


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(_version.name):
        return None
    return connection.execute(select(_version.c.version_num)).scalar()


def _oldest_program(connection: Connection) -> str | None:
    if not inspect(connection).has_table(_migration.name):
        return None
    return connection.execute(select(_migration.c.oldest_program)).scalar()


def _known(migrations: Path) -> set[str]:
    """The revisions of a folder of migrations, with which the names of their files begin. Never empty."""
    revisions = {path.name.partition("_")[0] for path in migrations.glob("versions/[0-9]*_*.py")}
    if not revisions:
        raise SchemaError("This installation lacks its database migrations. Install it again.")
    return revisions


def _words(error: DBAPIError) -> str:
    return str(error.orig).rpartition(": ")[2]
