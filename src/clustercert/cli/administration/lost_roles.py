"""Removes groups, memberships and assignments, and asks whether to revoke certificates of those who lose a role."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clustercert.cli.terminal.output import print_note
from clustercert.cli.terminal.prompts import ask

if TYPE_CHECKING:
    from clustercert.client.administration import AdministrationClient

RevokeOption = Annotated[
    bool | None,
    typer.Option(
        "--revoke/--keep",
        help="Revoke or keep the valid certificates of users who lose the role. Without this option, the command asks,"
        " or keeps the certificates if there is no terminal.",
        show_default=False,
    ),
]


def remove_role(
    client: "AdministrationClient",
    path: str,
    where: str,
    revoke: bool | None,
    done: str,
    *,
    asks: bool = True,
) -> None:
    """Delete a group, a membership or a role assignment.

    Prints what happens to the certificates of users who lose the role. Raises ClientError.

    Args:
        where: the projects in which the role is lost.
        done: the message after the deletion.
        asks: whether to ask if `revoke` is `None`. Without a terminal, no question is asked.
    """
    if revoke is None and asks and sys.stdin.isatty():
        found = client.delete(f"{path}{_separator(path)}dryRun=All")
        # A role in the whole service gives no certificates, so the response has no number of certificates.
        if (number := found.get("certificates", 0)) != 0:
            revoke = ask(f"{_described(found, where)} Revoke {_them(number)}?")
    found = client.delete(f"{path}{_separator(path)}revoke=true" if revoke else path)
    print_note(done)
    number = found.get("certificates", 0)
    if revoke and number:
        print_note(
            f"Revoked {number} certificate{_s(number)}. Clusters that enforce revocations refuse {_them(number)}."
        )
    elif revoke:
        print_note("There were no valid certificates to revoke.")
    elif number != 0:
        print_note(
            f"{_described(found, where)} The command revoked no certificates. To revoke them, run `clustercert "
            "certificate revoke --user USER --cluster CLUSTER`."
        )


def _described(found: "dict[str, Any]", where: str) -> str:
    if found["certificates"] is None:
        return f"The service could not count the valid certificates for clusters of {where}."
    number, users, clusters = found["certificates"], found["users"], found["clusters"]
    least = "" if found["complete"] else "at least "
    owners = "The user has" if users == 1 else f"{users} users have"
    return (
        f"{owners} {least}{number} valid certificate{_s(number)} for {clusters} cluster{_s(clusters)} of {where}, the"
        f" last until {found['until']}."
    )


def _separator(path: str) -> str:
    return "&" if "?" in path else "?"


def _s(number: object) -> str:
    return "" if number == 1 else "s"


def _them(number: object) -> str:
    return "it" if number == 1 else "them"
