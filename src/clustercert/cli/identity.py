"""`clustercert identity`: tokens from OIDC issuers."""

from pathlib import Path
from typing import Annotated

import typer

from clustercert.cli.commands import on_store
from clustercert.cli.output import Output, OutputOption, note, show_list, show_one
from clustercert.cli.prompts import read_secret
from clustercert.cli.session import Operator

app = typer.Typer(name="identity", help="Check tokens from OIDC issuers.", no_args_is_help=True)

# The maximum size of a token; longer ones are refused by the first check.
_MAX_CHARACTERS = 64 * 1024


@app.callback()
def identity() -> None:
    """Check tokens from OIDC issuers."""


@app.command()
@on_store
async def explain(
    operator: Operator,
    token_file: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Read the token from FILE, or from standard input (-)."),
    ],
    output: OutputOption = Output.TABLE,
) -> None:
    """Explain whether a token would be accepted: each check, and the user, groups and roles that it gives.

    Nothing is stored. Exits with status 1 if the token would be refused.
    """
    from clustercert.http.api.identity_bodies import explanation_body
    from clustercert.identity.token_report import report_on_token

    text = read_secret("Token", token_file, "add --token-file FILE", longest=_MAX_CHARACTERS)
    report = await report_on_token(operator.parts.oidc, operator.parts.identity.federation, text)
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
        show_one({"issuer": body["issuer"], **body["user"]}, output)
    if report.failed is not None:
        note(f"The token would be refused by the check {report.failed.check}.")
        raise typer.Exit(1)
    if output is Output.TABLE:
        note("The token would be accepted.")
