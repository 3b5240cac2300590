"""`clustercert policy can`: who could get a Kubernetes group."""

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.options import ClusterOption, InProjectOption, PolicyFileOption, past_time
from clustercert.cli.output import Output, OutputOption, Row, note, show_list
from clustercert.cli.session import Operator, operate, settings

if TYPE_CHECKING:
    from clustercert.issuance.explanations import EntitledUser

_ACCESS_COLUMNS = ("user", "groups", "rule", "longest", "needs", "unless")


def can(
    context: typer.Context,
    group: Annotated[
        str, typer.Option(metavar="GROUP", help="Kubernetes group; * stands for any characters.")
    ],
    cluster: ClusterOption,
    project: InProjectOption = None,
    policy: PolicyFileOption = None,
    since: Annotated[
        datetime,
        typer.Option(
            parser=past_time,
            metavar="TIME",
            help="Include users of OIDC issuers who got a certificate since then. Write 30d, or a time by RFC 3339.",
        ),
    ] = "30d",  # type: ignore[assignment] # typer parses it
    output: OutputOption = Output.TABLE,
) -> None:
    """List who could get a certificate with a Kubernetes group, by which rule, and for how long at most.

    Considers every request that a user could send. NEEDS says what the request must be like. UNLESS names rules that
    refuse some of these requests.
    """

    async def work(operator: Operator) -> list[Row]:
        from clustercert.issuance.explanations import EntitledUsers
        from clustercert.model import utc_now
        from clustercert.policy.entitlements import Entitlements

        loaded = settings(context, policy)
        registered = await operator.cluster(cluster, project)
        if registered.options.credential_roles:
            note(
                f"Certificates for {registered.name} have no groups of the policy: each is bound to a ClusterRole"
                " (--credential-role)."
            )
            return []
        tested = loaded.loaded_policy()
        entitlements = Entitlements(tested, registered, group, utc_now())
        users = EntitledUsers(operator.parts.database)
        return [
            row
            async for user in users.find(entitlements, registered.project_id, since)
            for row in _rows(user)
        ]

    rows = sorted(operate(context, work), key=lambda row: (str(row["user"]), str(row["user_id"])))
    show_list(rows, output, columns=_ACCESS_COLUMNS, name="user")


def _rows(found: "EntitledUser") -> Iterator[Row]:
    from clustercert.policy.lifetime import lifetime_text

    user = found.caller.user
    for each in found.entitlements:
        yield {
            "user": user.shown_name,
            "user_id": user.id,
            "issuer": found.caller.issuer,
            "seen_at": found.seen_at,
            "groups": each.groups,
            "rule": each.rule,
            "longest": lifetime_text(each.lifetime),
            "longest_seconds": int(each.lifetime.total_seconds()),
            "needs": each.needs,
            "unless": each.unless,
        }
