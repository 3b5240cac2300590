"""The schema of a database: which one it has, which one this program needs, and the way there."""

from collections.abc import Collection
from importlib.resources import files

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, func, select

from clustercert.errors import SchemaError
from clustercert.store.database import Database

# Any number will do that no other program locks in the same PostgreSQL database; this is "clusterc" in ASCII.
_ADVISORY_LOCK = int.from_bytes(b"clusterc")


async def upgrade(database: Database) -> None:
    """Bring the schema up to what this program needs, in one transaction.

    Several processes may do it at once: one works, the others wait and find nothing left to do.
    Raises SchemaError where the database is newer than this program, Unavailable.
    """
    # SQLite's writers exclude each other anyway; PostgreSQL's wait for the lock until the other's commit.
    async with database.write() as connection:
        if connection.dialect.name == "postgresql":
            await connection.execute(select(func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
        await connection.run_sync(_upgrade)


async def current(database: Database) -> str | None:
    """The revision that the database has; None where it has none. Raises Unavailable."""
    async with database.read() as connection:
        return await connection.run_sync(_revision)


def head() -> str:
    """The revision that this program needs."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise SchemaError("This installation lacks its database migrations. Install it again.")
    return revision


async def check(database: Database) -> None:
    """Raise SchemaError, which says what to do, unless the database has the schema this program needs."""
    _check(await current(database), head(), _known())


def _check(has: str | None, needs: str, known: Collection[str]) -> None:
    if has is None:
        raise SchemaError("The database has no schema yet. Run `clustercert db upgrade`.")
    if has not in known:
        raise SchemaError(
            f"The database has schema {has}, which this program does not know: a newer one made it. "
            "Run that newer program."
        )
    if has != needs:
        raise SchemaError(
            f"The database has schema {has} and this program needs {needs}. Run `clustercert db upgrade`."
        )


def _upgrade(connection: Connection) -> None:
    has = _revision(connection)
    if has is not None:
        # Any schema that is known will do; Alembic's own words about another one would not help.
        _check(has, has, _known())
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _known() -> set[str]:
    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def _config() -> Config:
    config = Config()
    # A percent sign in the option would be an interpolation.
    location = str(files("clustercert.store") / "migrations").replace("%", "%%")
    config.set_main_option("script_location", location)
    return config
