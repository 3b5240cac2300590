"""Removes memberships and role assignments, and asks whether to revoke the certificates of those who lose a role."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clustercert.cli.output import print_note
from clustercert.cli.prompts import ask

if TYPE_CHECKING:
    from clustercert.client.administration import AdministrationClient

RevokeOption = Annotated[
    bool | None,
    typer.Option(
        "--revoke/--keep",
        help="Revoke or keep the valid certificates of those who lose the role. Without this option, the command asks,"
        " or keeps the certificates if there is no terminal.",
        show_default=False,
    ),
]


def remove_role(
    client: "AdministrationClient", path: str, where: str, revoke: bool | None, done: str
) -> None:
    """Delete a membership or a role assignment. Prints what happens to the certificates of those who lose the role.

    Raises ClientError.

    Args:
        where: the projects in which the role is lost.
        done: the message after the deletion.
    """
    found: dict[str, Any] = client.delete(f"{path}{_separator(path)}dryRun=All")
    # A role in the whole service gives no certificates, so the response has no number of certificates.
    number = found.get("certificates") or 0
    described = _described(found, where) if number else ""
    if number and revoke is None and sys.stdin.isatty():
        revoke = ask(f"{described} Revoke {_them(number)}?")
    client.delete(f"{path}{_separator(path)}revoke=true" if number and revoke else path)
    print_note(done)
    if number and revoke:
        print_note(
            f"Revoked {number} certificate{_s(number)}. Clusters that enforce revocations refuse {_them(number)} within"
            " seconds."
        )
    elif number:
        print_note(
            f"{described} The command revoked no certificates. To revoke them, run `clustercert certificate revoke "
            "--user USER --cluster CLUSTER`."
        )


def _described(found: "dict[str, Any]", where: str) -> str:
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
