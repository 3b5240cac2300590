"""`clustercert identity`: checks tokens from OIDC issuers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clustercert.cli.commands import on_service
from clustercert.cli.terminal.output import (
    Output,
    OutputOption,
    Row,
    print_note,
    show_list,
    show_one,
    write_out,
)
from clustercert.cli.terminal.prompts import read_secret

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clustercert.client.administration import AdministrationClient


identity = typer.Typer(name="identity", help="Check tokens from OIDC issuers.", no_args_is_help=True)

_CHECK_COLUMNS = ("check", "passed", "came", "expected")
_RULE_COLUMNS = ("rule", "role", "given", "condition", "came", "expected", "projects")
# The maximum number of characters to read from the token file. The service accepts only shorter tokens, and its report
# says if a token is too long. A text of this length still fits into a request.
_MAX_CHARACTERS = 60 * 1024


@identity.callback()
def _identity_group() -> None:
    """Check tokens from OIDC issuers."""


@identity.command()
@on_service
def explain(
    client: "AdministrationClient",
    token_file: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Read the token from FILE, or from standard input (-)."),
    ],
    output: OutputOption = Output.TABLE,
) -> None:
    """Explain whether a token would be accepted: each check, and the user, groups and roles that the token gives.

    Only for operators. The token is neither stored nor logged. Exits with status 1 if the token would be refused.

    Examples:
        clustercert identity explain --token-file token.jwt
    """
    text = read_secret("Token", token_file, "add --token-file FILE", longest=_MAX_CHARACTERS)
    report = client.post("/identity/explain", {"token": text})
    with client.check_format():
        _show(report, output)
    if not report["accepted"]:
        raise typer.Exit(1)


def _show(report: "dict[str, Any]", output: Output) -> None:
    if output is not Output.TABLE:
        if output in (Output.JSON, Output.YAML):
            show_one(report, output)
        else:
            show_list(report["checks"], output, columns=_CHECK_COLUMNS, name="check")
        return
    show_list(report["checks"], output, columns=_CHECK_COLUMNS, name="check", keep=_CHECK_COLUMNS)
    if user := report["user"]:
        roles = [f"{project}: {', '.join(names)}" for project, names in user["roles"].items()]
        show_one({"issuer": report["issuer"], **user, "roles": "; ".join(roles)}, output)
    if rules := report["role_rules"]:
        write_out("\n")
        failed = ("condition", "came", "expected")
        show_list(list(_rule_rows(rules)), output, columns=_RULE_COLUMNS, name="role", keep=failed)
    if missing := report["missing"]:
        print_note(
            f"Warning: The settings of this issuer name objects that do not exist: {', '.join(missing)}. Create them,"
            " or correct the settings."
        )
    if report["accepted"]:
        print_note("The token would be accepted.")
    else:
        issuer = f", from the issuer {report['issuer']}," if report["issuer"] is not None else ""
        print_note(f"The token{issuer} would be refused by the check {report['failed']}.")


def _rule_rows(rules: "list[dict[str, Any]]") -> "Iterator[Row]":
    """Yield a row for each unmet condition of each rule, and one row for a rule that gives its role."""
    for number, rule in enumerate(rules, 1):
        where = "service" if rule["service"] else ", ".join(rule["projects"] or ()) or "all"
        conditions: list[dict[str, Any]] = rule["unmet"] or [{}]
        for unmet in conditions:
            yield {
                "rule": number,
                "role": rule["role"],
                "given": not rule["unmet"],
                "condition": unmet.get("check"),
                "came": unmet.get("came"),
                "expected": unmet.get("expected"),
                "projects": where,
            }
