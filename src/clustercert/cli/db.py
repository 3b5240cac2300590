"""`clustercert db`: the database and its schema."""

from typing import TYPE_CHECKING, TypeVar

import typer

from clustercert.cli.output import Output, OutputOption, note, show_one
from clustercert.cli.session import (
    DEFAULT_DOMAIN,
    Operator,
    actor,
    operate,
    origin,
    require_database,
    settings,
)
from clustercert.errors import Conflict

if TYPE_CHECKING:
    # The commands load what opens the database only when they are run.
    from collections.abc import Awaitable, Callable

    from clustercert.store.database import Database

T = TypeVar("T")

app = typer.Typer(name="db", help="The database and its schema.", no_args_is_help=True)


@app.command()
def upgrade(context: typer.Context) -> None:
    """Make the database, or bring its schema up to what this program needs.

    A new one also gets the data folder, the first data key, the roles and the domain Default.
    """
    import asyncio

    from clustercert.app import initialise

    asyncio.run(initialise(settings(context), actor=actor(), origin=origin()))
    if operate(context, _ensure_domain):
        note(f"Made the domain {DEFAULT_DOMAIN}.")
    note("The database has the schema that this program needs.")


@app.command()
def current(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Show which schema the database has and which one this program needs."""
    from clustercert.store import migrate

    has = _with_database(context, migrate.current)
    show_one({"current": has, "needed": migrate.head()}, output, name="current")


@app.command()
def check(context: typer.Context) -> None:
    """Check the schema and that the keys open what they should; exit with 1 if they don't."""

    async def work(_: Operator) -> None:
        """Opening the store has checked it."""

    operate(context, work)
    note("The database's schema and keys are as they should be.")


async def _ensure_domain(operator: Operator) -> bool:
    directory = operator.parts.identity.directory
    if await directory.domains():
        return False
    try:
        await directory.create_domain(DEFAULT_DOMAIN, actor=operator.actor, origin=operator.origin)
    except Conflict:
        # Another process, upgrading at the same moment, was quicker.
        return False
    return True


def _with_database(context: typer.Context, work: "Callable[[Database], Awaitable[T]]") -> T:
    """Work on a database whose schema may be any, or none at all."""
    import asyncio

    from clustercert.store.database import Database

    loaded = settings(context)
    require_database(loaded)

    async def opened() -> T:
        database = Database(loaded.store_url)
        try:
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(opened())
