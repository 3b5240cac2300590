"""`clustercert db`: manages the database schema, and deletes old certificates."""

from datetime import datetime
from typing import Annotated

import typer

from clustercert.cli.commands import on_store
from clustercert.cli.options import YesOption, time_ago
from clustercert.cli.output import Output, OutputOption, Progress, note, show_one
from clustercert.cli.prompts import confirm
from clustercert.cli.session import (
    DEFAULT_DOMAIN,
    Operator,
    actor,
    operate,
    require_database,
    settings,
)
from clustercert.model.errors import Conflict
from clustercert.model.times import rfc3339

db = typer.Typer(name="db", help="Manage the database and its schema.", no_args_is_help=True)


@db.command()
def upgrade(context: typer.Context) -> None:
    """Create the database, or upgrade its schema.

    For a new database this also creates the data folder, the first data key, the roles and the domain Default.
    """
    import asyncio

    from clustercert.wiring import initialise

    loaded = settings(context)
    with Progress("migrations", at_once=True) as progress:
        asyncio.run(initialise(loaded, actor=actor(), report_progress=progress.reach))
    if operate(context, _ensure_domain):
        note(f"Created the domain {DEFAULT_DOMAIN}.")
    note("The database schema is up to date.")


@db.command()
def current(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Show the schema version of the database.

    Also shows the version that this program needs.
    """
    import asyncio

    from clustercert.store.engine import migrate
    from clustercert.store.engine.database import Database

    loaded = settings(context)
    require_database(loaded)

    async def version() -> str | None:
        database = Database(loaded.store_url)
        try:
            return await migrate.current(database)
        finally:
            await database.close()

    show_one({"current": asyncio.run(version()), "needed": migrate.head()}, output, name="current")


@db.command()
@on_store
async def check(operator: Operator) -> None:
    """Check the schema, the keys and the names of issuers. Exit with 1 if one is wrong. Also warns of risks."""
    from clustercert.cli.deployment_warnings import show_warnings

    # Opening the store has already checked the schema and the keys.
    await operator.directory.require_free(operator.parts.settings.identity.authority_names)
    await show_warnings(operator.parts)
    note("The database schema and the keys are valid.")


@db.command()
@on_store
async def prune(
    operator: Operator,
    older_than: Annotated[
        datetime,
        typer.Option(parser=time_ago, metavar="AGE", help="Minimum time since expiry, such as 90d or 2w."),
    ],
    output: OutputOption = Output.TABLE,
    yes: YesOption = False,
) -> None:
    """Delete certificates that expired long ago. Their audit events stay.

    The service can keep running. If the command is interrupted, run it again.
    """
    from clustercert.model import utc_now
    from clustercert.model.events.administration import CertificatesPruned

    ended = rfc3339(older_than)
    expired = await operator.parts.certificates.count_expired(older_than)
    confirm(f"Delete the {expired} certificates that expired before {ended}?", yes=yes)

    def event(count: int) -> CertificatesPruned:
        """Create the audit event for a number of certificates deleted together."""
        return CertificatesPruned(
            at=utc_now(), actor=operator.actor, subject=ended, count=count, ended_before=ended
        )

    pruned = 0
    while count := await operator.parts.certificates.prune(older_than, event):
        pruned += count
    show_one({"pruned": pruned, "ended_before": older_than}, output, name="pruned")


async def _ensure_domain(operator: Operator) -> bool:
    directory = operator.directory
    if await directory.domains():
        return False
    try:
        await directory.create_domain(DEFAULT_DOMAIN, actor=operator.actor)
    except Conflict:
        # Another process upgraded the schema at the same time.
        return False
    return True
