"""`clustercert certificate revoke|undo|revocations`."""

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated, NamedTuple, cast

import typer

from clustercert.cli.commands import on_service
from clustercert.cli.options import (
    MIN_DIGITS,
    InProjectOption,
    LimitOption,
    OnlyClusterOption,
    OnlyUserOption,
    YesOption,
)
from clustercert.cli.output import Output, OutputOption, note, show_list, show_one
from clustercert.cli.prompts import confirm
from clustercert.model.choices import RevocationReason
from clustercert.model.errors import Forbidden

if TYPE_CHECKING:
    from clustercert.client.administration import AdministrationClient
    from clustercert.model import JsonObject

_REVOCATION_COLUMNS = ("id", "at", "reason", "undone_at", "user_id", "cluster_id", "by", "fingerprint")
_DRY_RUN = "?dryRun=All"


class Found(NamedTuple):
    """The certificates that a revocation would revoke.

    Attributes:
        path: of the revocation.
        question: the question to confirm. It has names and ids, because a name may find another object than the user
            means.
        cluster: its name, for messages.
    """

    path: str
    question: str
    cluster: object


@dataclass(frozen=True, slots=True)
class ScopeOptions:
    """The options that select one certificate, or all certificates of a user or a cluster."""

    certificate: Annotated[
        str | None,
        typer.Argument(
            metavar="[CERTIFICATE]",
            help=f"Fingerprint or its first {MIN_DIGITS} digits, credential number or serial.",
        ),
    ] = None
    user: Annotated[
        str | None,
        typer.Option(metavar="USER", help="Revoke all certificates of a user, by name or id."),
    ] = None
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="CLUSTER", help="Revoke only in this cluster; without --user, all its certificates."
        ),
    ] = None
    project: InProjectOption = None
    everywhere: Annotated[bool, typer.Option("--everywhere", help="With --user: revoke in all clusters.")] = (
        False
    )

    def __post_init__(self) -> None:
        if self.certificate is not None and (
            self.user is not None or self.cluster is not None or self.everywhere
        ):
            raise typer.BadParameter("Give either a certificate, or --user and --cluster.")
        if self.everywhere and (self.user is None or self.cluster is not None):
            raise typer.BadParameter("--everywhere requires --user and excludes --cluster.")
        if self.certificate is None and self.cluster is None and not self.everywhere:
            raise typer.BadParameter(
                "Name a certificate, or give --cluster CLUSTER, or --user USER with --cluster or --everywhere."
            )

    def find(self, client: "AdministrationClient") -> Found:
        """Find the certificates that would be revoked. Raises ClientError, UnknownName or CommandError."""
        if self.certificate is not None:
            return _found_certificate(client, self.certificate)
        base, cluster = "", None
        if self.cluster is not None:
            from clustercert.cli.lookup import cluster_path, find_cluster

            cluster = find_cluster(client, self.cluster, self.project)
            base = cluster_path(cluster)
        if self.user is None:
            return _found_all(f"{base}/revoke", preview_of_all(client, base))
        if self.everywhere and not client.is_operator:
            raise Forbidden(
                "Only operators can revoke a user's certificates everywhere. To revoke all of your own, and end your "
                "logins, run `clustercert logout --everywhere`."
            )
        from clustercert.cli.lookup import find_user, is_certificate_owner
        from clustercert.client.administration import path_of

        user = find_user(client, self.user, cluster=cluster)
        path = f"{base}{path_of('users', str(user['id']), 'revoke')}"
        preview = client.post(path + _DRY_RUN)
        if preview["user_name"] is None and not is_certificate_owner(self.user):
            preview["user_name"] = self.user
        return _found_all(path, preview)


@on_service
def revoke(
    client: "AdministrationClient",
    scope: ScopeOptions,
    reason: Annotated[
        RevocationReason,
        typer.Option(
            metavar="REASON",
            help="unspecified, keyCompromise (can't be undone), affiliationChanged, superseded or "
            "cessationOfOperation (RFC 5280).",
        ),
    ] = "unspecified",
    note_text: Annotated[
        str | None, typer.Option("--note", metavar="TEXT", help="Explanation, for the audit log.")
    ] = None,
    output: OutputOption = Output.TABLE,
    yes: YesOption = False,
) -> None:
    """Revoke one certificate, or all certificates of a user or a cluster. Certificates issued later stay valid.

    Users revoke their own certificates, admins those of their project, operators all. Asks first, unless --yes is
    given. How the API server enforces it depends on the cluster: see `clustercert certificate access`.
    """
    from clustercert.cli.output import with_times

    found = scope.find(client)
    confirm(found.question, yes=yes)
    body: JsonObject = {"reason": reason}
    if note_text is not None:
        body["note"] = note_text
    made = client.post(found.path, body)
    enforcement = {name: made.pop(name) for name in ("enforced_by", "lacking")}
    show_one(with_times(made), output, name="id")
    is_one = made["fingerprint"] is not None
    note(_effect(enforcement, found.cluster, is_one=is_one) + _undo_hint(client, made))


@on_service
def undo(
    client: "AdministrationClient",
    revocation: Annotated[
        int, typer.Argument(metavar="REVOCATION", help="Id of the revocation.", min=1, max=2**63 - 1)
    ],
    output: OutputOption = Output.TABLE,
) -> None:
    """Undo a recent revocation. Only for operators.

    A revocation for keyCompromise, or by the holder of the key, can't be undone.
    """
    from clustercert.cli.output import with_times

    show_one(with_times(client.post(f"/revocations/{revocation}/undo")), output, name="id")


@on_service
def revocations(
    client: "AdministrationClient",
    cluster: OnlyClusterOption = None,
    project: InProjectOption = None,
    user: OnlyUserOption = None,
    limit: LimitOption = 100,
    output: OutputOption = Output.TABLE,
) -> None:
    """List revocations, newest first, including undone ones. Only for operators and admins of the project."""
    from clustercert.cli.lookup import cluster_path, find_cluster, find_user
    from clustercert.cli.output import with_times
    from clustercert.client.administration import path_of

    if cluster is not None and user is None:
        path = cluster_path(find_cluster(client, cluster, project), "revocations")
    elif user is not None and cluster is None:
        path = path_of("users", str(find_user(client, user)["id"]), "revocations")
    else:
        raise typer.BadParameter("Give either --cluster or --user.")
    found = islice(client.all(path, "revocations"), limit)
    show_list([with_times(each) for each in found], output, columns=_REVOCATION_COLUMNS, name="id")


def preview_of_all(client: "AdministrationClient", cluster: str) -> "JsonObject":
    """Return the preview of revoking all certificates of a cluster, by its path. Revokes nothing."""
    return client.post(f"{cluster}/revoke{_DRY_RUN}")


def _found_certificate(client: "AdministrationClient", name: str) -> Found:
    from clustercert.cli.certificate_search import find_certificate

    found, path = find_certificate(client, name)
    cluster = found["cluster_name"] or found["cluster_id"]
    question = (
        f"Revoke the certificate {found['fingerprint']} of the user {found['user_name']} for the cluster {cluster} "
        f"({found['state']}, until {found['not_after']})?"
    )
    return Found(path, question, cluster)


def _found_all(path: str, preview: "JsonObject") -> Found:
    owner, where = "all users", "every cluster"
    if (user_id := preview["user_id"]) is not None:
        name = preview["user_name"]
        owner = f"the user {name} ({user_id})" if name is not None else f"the user {user_id}"
    if preview["cluster_id"] is not None:
        where = f"the cluster {preview['cluster_name']} ({preview['cluster_id']})"
    question = f"Revoke all certificates of {owner} in {where} ({preview['live']} live)?"
    return Found(path, question, preview["cluster_name"])


def _effect(enforcement: "JsonObject", cluster: object, *, is_one: bool) -> str:
    """Describe the effect of a revocation. `is_one`: it revokes one certificate, not all of a user or a cluster."""
    names = cast("list[str] | None", enforcement["enforced_by"])
    if names is None:
        return "Revoked. Clusters that enforce revocations refuse them within seconds."
    if not names:
        lacking = enforcement["lacking"] or "See `clustercert kubernetes setup`."
        return (
            f"Revoked, but the cluster {cluster} does not enforce revocations: it accepts the certificate until "
            f"expiry. {lacking}"
        )
    effect = f"refuses it within seconds ({' and '.join(names)})"
    if names == ["admission"]:
        effect = "refuses its writes within seconds (admission), but still allows it to read until expiry"
    elif "webhook" not in names and not is_one:
        rest = "only the writes" if "admission" in names else "nothing"
        effect = f"refuses certificates with a binding within seconds; of the others it refuses {rest} until expiry"
    return (
        f"Revoked. The cluster {cluster} {effect}, if its API server is configured. "
        "Check that with `clustercert kubernetes verify`."
    )


def _undo_hint(client: "AdministrationClient", made: "JsonObject") -> str:
    if made["can_be_undone"] is not True or not client.is_operator:
        return ""
    return f" To undo it soon, run `clustercert certificate undo {made['id']}`."
