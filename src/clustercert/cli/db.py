"""`clustercert db`: the database and its schema."""

from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from clustercert.cli.asking import agreed
from clustercert.cli.options import YesOption
from clustercert.cli.output import Output, OutputOption, note, show_one, time_text
from clustercert.cli.session import (
    DEFAULT_DOMAIN,
    Operator,
    operate,
    require_database,
    settings,
    who,
)
from clustercert.errors import Conflict

if TYPE_CHECKING:
    # The commands load what opens the database only when they are run.
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from clustercert.model import AuditEvent
    from clustercert.store.database import Database

T = TypeVar("T")

app = typer.Typer(name="db", help="The database and its schema.", no_args_is_help=True)


@app.command()
def upgrade(context: typer.Context) -> None:
    """Make the database, or bring its schema up to what this program needs.

    A new one also gets the data folder, the first data key, the roles and the domain Default.
    """
    import asyncio

    from clustercert.app.wiring import initialise

    asyncio.run(initialise(settings(context), **who()))
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


@app.command()
def prune(
    context: typer.Context,
    older_than: Annotated[
        str, typer.Option(help="How long ago a certificate must have ended, such as 90d or 2w.")
    ],
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Forget the certificates that ended long enough ago, while the service runs.

    What the audit says of them stays. Stopped half-way, it goes on when it is run again.
    """
    from datetime import UTC, datetime

    from clustercert.policy import parse_lifetime

    try:
        ended_before = datetime.now(UTC) - parse_lifetime(older_than)
    except (ValueError, OverflowError):
        raise typer.BadParameter("write it like 90d, 12h or 2w.", param_hint="--older-than") from None
    agreed(
        f"Certificates that ended before {time_text(ended_before)} will be gone from the ledger. Go on?",
        yes=yes,
    )

    async def work(operator: Operator) -> int:
        pruned = 0
        while count := await operator.parts.certificates.prune(ended_before, _pruned(operator, ended_before)):
            pruned += count
        return pruned

    show_one({"pruned": operate(context, work), "ended_before": ended_before}, output, name="pruned")


def _pruned(operator: Operator, ended_before: "datetime") -> "Callable[[int], AuditEvent]":
    """What the audit says of a number of certificates that are forgotten together."""
    from clustercert.model import AuditEvent, utc_now

    return lambda count: AuditEvent(
        at=utc_now(),
        kind="certificates.pruned",
        project_id=None,
        subject=time_text(ended_before),
        detail={"count": count, "ended_before": time_text(ended_before)},
        **operator.who,
    )


async def _ensure_domain(operator: Operator) -> bool:
    directory = operator.parts.identity.directory
    if await directory.domains():
        return False
    try:
        await directory.create_domain(DEFAULT_DOMAIN, **operator.who)
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
