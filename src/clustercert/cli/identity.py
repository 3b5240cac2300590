"""`clustercert identity`: tokens from OIDC issuers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.output import Output, OutputOption, note, show_list, show_one
from clustercert.cli.prompts import read_secret
from clustercert.cli.session import store_settings

if TYPE_CHECKING:
    from clustercert.identity.names import TokenReport
    from clustercert.settings import Settings

identity = typer.Typer(name="identity", help="Check tokens from OIDC issuers.", no_args_is_help=True)

# The maximum size of a token; longer ones are refused by the first check.
_MAX_CHARACTERS = 64 * 1024


@identity.callback()
def _identity_group() -> None:
    """Check tokens from OIDC issuers."""


@identity.command()
def explain(
    context: typer.Context,
    token_file: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Read the token from FILE, or from standard input (-)."),
    ],
    output: OutputOption = Output.TABLE,
) -> None:
    """Explain whether a token would be accepted: each check, and the user, groups and roles that it gives.

    Nothing is stored. Exits with status 1 if the token would be refused.
    """
    loaded = store_settings(context)
    # Imported only now, so that invalid settings are reported without delay.
    import asyncio

    from clustercert.observability import log

    log.configure_command()
    text = read_secret("Token", token_file, "add --token-file FILE", longest=_MAX_CHARACTERS)
    _show(asyncio.run(_report(loaded, text)), output)


def _show(report: "TokenReport", output: Output) -> None:
    """Print a report. Raises typer.Exit if the token would be refused."""
    from clustercert.http.identity import explanation_body

    body = explanation_body(report)
    if output in (Output.JSON, Output.YAML):
        show_one(body, output)
    else:
        rows = [
            {"check": each.check, "passed": each.passed, "came": each.came, "expected": each.expected}
            for each in report.explanation.checks
        ]
        show_list(rows, output, columns=("check", "passed", "came", "expected"), name="check")
    if output is Output.TABLE and isinstance(body["user"], dict):
        roles = [f"{project}: {', '.join(names)}" for project, names in body["user"]["roles"].items()]
        show_one({"issuer": body["issuer"], **body["user"], "roles": "; ".join(roles)}, output)
    if output is Output.TABLE and report.missing:
        note(f"Warning: The settings of this issuer name what does not exist: {', '.join(report.missing)}.")
    if report.failed is not None:
        issuer = f", from the issuer {body['issuer']}," if body["issuer"] is not None else ""
        note(f"The token{issuer} would be refused by the check {report.failed.check}.")
        raise typer.Exit(1)
    if output is Output.TABLE:
        note("The token would be accepted.")


async def _report(settings: "Settings", text: str) -> "TokenReport":
    """Report on a token, with only the components that this needs: all of them take half a second to build."""
    from clustercert.identity.names import report_on_token

    if any(issuer.cluster for issuer in settings.identity.issuers):
        # The service connects to clusters with a certificate that it issues to itself.
        from clustercert.wiring import components

        async with components(settings) as parts:
            return await report_on_token(parts.oidc, parts.identity.federation, text)

    import httpx  # noqa: F401 - now, since an explanation waits only briefly for the issuer's keys

    from clustercert.authn.oidc.authenticator import new_authenticator
    from clustercert.authn.oidc.token_reviews import NoClusters
    from clustercert.identity.federation import Federation
    from clustercert.model import utc_now
    from clustercert.store.engine import migrate
    from clustercert.store.engine.database import Database

    database = Database(settings.store_url)
    try:
        await migrate.check(database)
        federation = Federation(database, utc_now)
        issuers = settings.identity.issuers
        oidc = new_authenticator(issuers, federation, NoClusters(), utc_now) if issuers else None
        return await report_on_token(oidc, federation, text)
    finally:
        await database.close()
