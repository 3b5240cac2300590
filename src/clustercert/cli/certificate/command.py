"""`clustercert certificate`: lists, shows and revokes certificates."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, NamedTuple, cast

import typer

from clustercert.certificates.controls import ACCOUNT_WITHIN
from clustercert.cli.certificate import access
from clustercert.cli.commands import on_service
from clustercert.cli.credential.access_request import full_id
from clustercert.cli.lookup import (
    cluster_path,
    find_cluster,
    find_project,
    find_user,
    full_name,
    is_certificate_owner,
    named_users,
    own_projects,
    shown_cluster,
    shown_name,
)
from clustercert.cli.options import (
    MAX_LINES,
    MIN_DIGITS,
    InProjectOption,
    InvalidOption,
    LimitOption,
    ListLimitOption,
    OnlyClusterOption,
    OnlyProjectOption,
    OnlyUserOption,
    ProjectDomainOption,
    UnknownName,
    YesOption,
    did_you_mean,
    future_time,
    past_time,
)
from clustercert.cli.session import CLUSTER_ID
from clustercert.cli.terminal.output import (
    Output,
    OutputOption,
    Progress,
    Row,
    is_wide,
    print_note,
    show_list,
    show_one,
    with_names,
    with_qualified_names,
    with_times,
)
from clustercert.cli.terminal.prompts import confirm
from clustercert.client.administration import path_of
from clustercert.client.connection import ApiError
from clustercert.model.choices import CertificateState, CredentialKind, KeyOrigin, RevocationReason
from clustercert.model.credentials import bare_name
from clustercert.model.enforcement import enforcement_text
from clustercert.model.errors import Forbidden
from clustercert.model.identity import qualified_name
from clustercert.model.times import rfc3339, utc_now

if TYPE_CHECKING:
    from clustercert.client.administration import AdministrationClient
    from clustercert.model import JsonObject
    from clustercert.model.choices import EnforcementState


_FORBIDDEN, _NOT_FOUND = 403, 404
_HEX = frozenset("0123456789abcdef")
_OWN = {"own": "true"}


@dataclass(frozen=True, slots=True)
class Scope:
    """Which certificates to list: by default, the caller's own certificates.

    Attributes:
        everything: whether to list all certificates that the caller may see.
    """

    everything: bool = False
    cluster: str | None = None
    project: str | None = None
    user: str | None = None


def search_certificates(
    client: "AdministrationClient", scope: Scope, filters: Mapping[str, str], limit: int
) -> "tuple[Sequence[JsonObject], bool]":
    """Return at most `limit` certificates, newest first, and whether more certificates match.

    Raises ClientError, UnknownName, or CommandError for an ambiguous name.
    """
    paths, place = _paths(client, scope)
    query = {**filters, **place, **_user(scope.user)}
    found: list[JsonObject] = []
    with Progress("certificates read") as progress:
        for path in paths:
            for each in islice(_read(client, path, query, is_only=len(paths) == 1), limit + 1):
                found.append(each)
                progress.advance()
    if not found and scope.user is not None and not is_certificate_owner(scope.user):
        _require_user(client, scope.user)
    if len(paths) > 1:
        found.sort(key=lambda each: str(each["issued_at"]), reverse=True)
    return found[:limit], len(found) > limit


def find_certificate(client: "AdministrationClient", name: str) -> "tuple[JsonObject, str]":
    """Return a certificate, and the API path that revokes it.

    Args:
        name: the certificate's fingerprint, the first digits of the fingerprint, the credential number or the serial,
            or a credential id of an audit log.

    Raises ClientError or UnknownName.
    """
    digits = bare_name(name)
    if len(digits) < MIN_DIGITS or not _HEX.issuperset(digits):
        raise UnknownName(
            f"{name} does not name a certificate. Give the certificate's fingerprint, at least the first {MIN_DIGITS} "
            "digits of the fingerprint, the credential number, the serial, or a token's JTI=ID."
        )
    found = client.find(path_of("certificates", digits))
    if found is not None:
        return found, path_of("certificates", str(found["fingerprint"]), "revoke")
    # A token for a project has the rights of an admin only in that project.
    for project in () if client.reads_everything else own_projects(client):
        found = client.find(path_of("projects", project.id, "certificates", digits))
        if found is not None:
            cluster = {"project_id": project.id, "id": found["cluster_id"]}
            return found, cluster_path(cluster, "certificates", str(found["fingerprint"]), "revoke")
    raise UnknownName(
        f"There is no such certificate: {name}. `clustercert certificate list` lists your certificates; "
        "with --all, it lists all certificates that you may see."
    )


def _paths(client: "AdministrationClient", scope: Scope) -> tuple[Sequence[str], Mapping[str, str]]:
    """Return the API paths of the certificate lists to read, and the query parameters that filter the lists."""
    removed: Mapping[str, str] = {}
    if scope.cluster is not None:
        try:
            found = find_cluster(client, scope.cluster, scope.project)
            return [cluster_path(found, "certificates")], {}
        except UnknownName:
            # The service keeps the certificates of a removed cluster, so accept the cluster's id.
            if not CLUSTER_ID.fullmatch(scope.cluster):
                raise
            removed = {"cluster": scope.cluster}
    if scope.project is not None:
        project = find_project(client, scope.project)
        return [path_of("projects", str(project["id"]), "certificates")], removed
    wants_others = scope.everything or scope.user is not None or bool(removed)
    if client.is_user and not wants_others:
        return ["/certificates"], _OWN
    if client.reads_everything:
        return ["/certificates"], removed
    paths = [path_of("projects", each.id, "certificates") for each in own_projects(client)]
    return paths, removed


def _user(name_or_id: str | None) -> Mapping[str, str]:
    """Return the query parameter that selects a user."""
    if name_or_id is None:
        return {}
    return {"user" if is_certificate_owner(name_or_id) else "user_name": name_or_id}


def _require_user(client: "AdministrationClient", name: str) -> None:
    """Raise UnknownName if no user has this name, or if the caller can't look up names."""
    if client.reads_everything and named_users(client, name):
        return
    names = [str(each["name"]) for each in client.list_all("/users", "users")] if client.is_operator else []
    raise UnknownName(f"No certificate that you may see belongs to a user {name}.{did_you_mean(name, names)}")


def _read(
    client: "AdministrationClient", path: str, query: Mapping[str, str], *, is_only: bool
) -> "Iterator[JsonObject]":
    """Yield the certificates of a list. A list that the caller may not read is skipped if there are other lists."""
    try:
        yield from client.list_all(path, "certificates", **query)
    except ApiError as error:
        if is_only or error.http_status not in {_FORBIDDEN, _NOT_FOUND}:
            raise


_REVOCATION_COLUMNS = ("id", "at", "user", "project", "cluster", "reason", "undone_at", "by", "fingerprint")
_DRY_RUN = "?dryRun=All"


class Found(NamedTuple):
    """The certificates that a revocation would revoke.

    Attributes:
        path: the API path of the revocation.
        question: asks the user to confirm. The question contains names and ids, because a name may match a different
            object than the user means.
        cluster: the cluster's name, for messages.
        done: says what was revoked.
    """

    path: str
    question: str
    cluster: object
    done: str


@dataclass(frozen=True, slots=True)
class ScopeOptions:
    """The options that select one certificate, or all certificates of a user or a cluster."""

    certificate: Annotated[
        str | None,
        typer.Argument(
            metavar="[CERTIFICATE]",
            help=f"Fingerprint or its first {MIN_DIGITS} digits, credential number or serial, or JTI=ID of a token.",
        ),
    ] = None
    user: Annotated[
        str | None,
        typer.Option(metavar="USER", help="Revoke all certificates of a user, by name or id."),
    ] = None
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="CLUSTER",
            help="Revoke only certificates for this cluster. Without --user, revokes the certificates of "
            "all users.",
        ),
    ] = None
    project: InProjectOption = None
    domain: ProjectDomainOption = None
    everywhere: Annotated[
        bool, typer.Option("--everywhere", help="Revoke the certificates of --user in all clusters.")
    ] = False

    def __post_init__(self) -> None:
        if self.certificate is not None and (
            self.user is not None or self.cluster is not None or self.everywhere
        ):
            raise InvalidOption("Give either a certificate, or --user and --cluster.")
        if self.everywhere and (self.user is None or self.cluster is not None):
            raise InvalidOption("--everywhere requires --user and excludes --cluster.")
        if self.certificate is None and self.cluster is None and not self.everywhere:
            raise InvalidOption(
                "Name a certificate, or give --cluster CLUSTER, or --user USER with --cluster or --everywhere."
            )

    def find(self, client: "AdministrationClient") -> Found:
        """Find the certificates that would be revoked. Raises ClientError, UnknownName or CommandError."""
        if self.certificate is not None:
            return _found_certificate(client, self.certificate)
        base, cluster = "", None
        if self.cluster is not None:
            cluster = find_cluster(client, self.cluster, self.project, self.domain)
            base = cluster_path(cluster)
        if self.user is None:
            return _found_all(f"{base}/revoke", preview_of_all(client, base), cluster)
        if self.everywhere and not client.is_operator:
            if not _is_caller(client, self.user):
                raise Forbidden(
                    "Only operators can revoke the certificates of another user everywhere. Admins of a "
                    "project can revoke the user's certificates in one cluster: give --cluster instead of --everywhere."
                )
            user: JsonObject = {"id": client.caller["id"]}
        else:
            user = find_user(client, self.user, cluster=cluster)
        path = f"{base}{path_of('users', str(user['id']), 'revoke')}"
        preview = client.post(path + _DRY_RUN)
        if preview["user_name"] is None and not is_certificate_owner(self.user):
            preview["user_name"] = self.user
        was_issued = preview["live"] != 0 or _has_unexpired(client, user, cluster)
        return _found_all(path, preview, cluster, was_issued=was_issued)


def _is_caller(client: "AdministrationClient", name_or_id: str) -> bool:
    caller = client.caller
    return name_or_id in (caller["id"], caller["name"], f"{caller['domain']}/{caller['name']}")


@on_service
def revoke(
    client: "AdministrationClient",
    scope: ScopeOptions,
    reason: Annotated[
        RevocationReason,
        typer.Option(
            "--crl-reason",
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

    Users can revoke their own certificates. Admins can revoke all certificates of their project, and operators can
    revoke all certificates. Asks for confirmation, unless --yes is given. How the API server enforces a revocation
    depends on the cluster: see `clustercert certificate access`.

    Examples:
        clustercert certificate revoke 2f9c1a7e5b3d8046
        clustercert certificate revoke --user alice --cluster prod
        clustercert certificate revoke --user alice --everywhere
    """
    found = scope.find(client)
    confirm(found.question, yes=yes)
    body: JsonObject = {"reason": reason}
    if note_text is not None:
        body["note"] = note_text
    made = client.post(found.path, body)
    names = (
        "enforcement",
        "webhook_called_at",
        "enforced_by",
        "refuses",
        "within_seconds",
        "expected_by",
        "lacking",
        "does_not_stop",
    )
    enforcement = {name: made.pop(name) for name in names}
    show_one(with_times(made), output, name="id")
    print_note(found.done)
    # The service account of a revoked token is deleted, so nothing can be undone.
    is_of_tokens = "account" in cast("list[str]", enforcement["enforced_by"] or [])
    hint = "" if is_of_tokens else _undo_hint(client, made)
    print_note(_effect(enforcement, found.cluster) + hint)


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

    Examples:
        clustercert certificate undo 4711
    """
    show_one(with_times(client.post(f"/revocations/{revocation}/undo")), output, name="id")


@on_service
def revocations(
    client: "AdministrationClient",
    cluster: OnlyClusterOption = None,
    project: OnlyProjectOption = None,
    user: OnlyUserOption = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            parser=past_time,
            metavar="TIME",
            help="List only revocations since TIME: RFC 3339, or a duration before now such as 1d.",
        ),
    ] = None,
    limit: LimitOption = 100,
    output: OutputOption = Output.TABLE,
) -> None:
    """List revocations, newest first, including undone ones. Only for operators, auditors and admins of the project.

    With --user, lists only revocations of all certificates of the user, in all clusters.

    Examples:
        clustercert certificate revocations --cluster prod --since 7d
    """
    if user is not None and (cluster is not None or project is not None):
        raise InvalidOption("--user excludes --cluster and --project.")
    paths = _revocation_paths(client, cluster, project, user)
    query = {"since": rfc3339(since)} if since is not None else {}
    found: list[JsonObject] = []
    # A caller may be an admin in only some of their projects, so skip lists that the caller may not read.
    refusals: list[ApiError] = []
    for path in paths:
        try:
            found += islice(client.list_all(path, "revocations", **query), limit + 1)
        except ApiError as error:
            refusals.append(error)
            if len(refusals) == len(paths) or error.http_status not in {_FORBIDDEN, _NOT_FOUND}:
                raise
    found.sort(key=lambda each: int(str(each["id"])), reverse=True)
    rows: Sequence[Row] = [with_times(each) for each in found[:limit]]
    if output is Output.TABLE:
        rows = [{**_with_owner(row), "by": row["by_name"] or row["by"]} for row in rows]
        rows = with_qualified_names(rows, "user", "user_domain")
        rows = with_qualified_names(rows, "project", "project_domain")
    keep = ["at", "user", "cluster", "reason", *(["project"] if _share_names(rows) else [])]
    empty = "Nothing found."
    if user is not None:
        empty = (
            f"No revocation covers the certificates of {user} in all clusters. To list revocations in one "
            "cluster, give --cluster instead of --user."
        )
    show_list(rows, output, columns=_REVOCATION_COLUMNS, name="id", keep=keep, empty=empty)
    if len(found) > limit:
        print_note(f"Only the first {limit} are listed. Raise --limit, or filter the list.")


def _revocation_paths(
    client: "AdministrationClient", cluster: str | None, project: str | None, user: str | None
) -> Sequence[str]:
    """Return the API paths of the revocation lists to read."""
    if user is not None:
        return [path_of("users", str(find_user(client, user)["id"]), "revocations")]
    if cluster is not None:
        return [cluster_path(find_cluster(client, cluster, project), "revocations")]
    if project is not None:
        return [path_of("projects", str(find_project(client, project)["id"]), "revocations")]
    if client.reads_everything:
        return ["/revocations"]
    return [path_of("projects", each.id, "revocations") for each in own_projects(client)] or ["/revocations"]


def _with_owner(row: Row) -> Row:
    """Add columns for the user, the project and the cluster, with the name or, if the name is unknown, the id."""
    return {
        **row,
        "user": row["user_name"] or row["user_id"] or "all",
        "project": row["project_name"] or ("all" if row["cluster_id"] is None else None),
        "cluster": row["cluster_name"] or row["cluster_id"] or "all",
    }


def _share_names(rows: Sequence[Row]) -> bool:
    """Whether several clusters in the rows have the same name."""
    return len({row["cluster_id"] for row in rows}) > len({row.get("cluster") for row in rows})


def preview_of_all(client: "AdministrationClient", cluster: str) -> "JsonObject":
    """Preview the revocation of all certificates of a cluster, without revoking certificates.

    `cluster` is the cluster's API path.
    """
    return client.post(f"{cluster}/revoke{_DRY_RUN}")


def _found_certificate(client: "AdministrationClient", name: str) -> Found:
    found, path = find_certificate(client, name)
    cluster_id = str(found["cluster_id"])
    cluster = shown_cluster(client, str(found["cluster_name"] or cluster_id), cluster_id)
    user = shown_name(client, {"name": found["user_name"], "domain": found["user_domain"]})
    question = (
        f"Revoke the certificate {found['fingerprint']} of the user {user} for the cluster {cluster} "
        f"({found['state']}, until {found['not_after']})?"
    )
    done = f"Revoked a certificate of the user {user} for the cluster {cluster}."
    return Found(path, question, cluster, done)


def _found_all(
    path: str, preview: "JsonObject", cluster: "JsonObject | None", *, was_issued: bool = True
) -> Found:
    """Describe the revocation of all certificates of a user or cluster.

    `was_issued`: whether the user has unexpired certificates, revoked or not.
    """
    owner = shown_owner = "all users"
    where = shown_where = "every cluster"
    if (user_id := preview["user_id"]) is not None:
        name = preview["user_name"]
        shown = qualified_name(str(name or user_id), str(preview["user_domain"] or ""))
        shown_owner = f"the user {shown}"
        owner = f"{shown_owner} ({user_id})" if name is not None else shown_owner
    if cluster is not None:
        shown_where = f"the cluster {full_name(cluster)}"
        where = f"{shown_where} ({cluster['id']})"
    live = cast("int", preview["live"])
    question = f"Revoke all certificates of {owner} in {where} ({live} live)?"
    if live:
        plural = "" if live == 1 else "s"
        done = f"Revoked {live} certificate{plural} of {shown_owner} in {shown_where}."
    elif was_issued:
        done = f"All unexpired certificates of {shown_owner} in {shown_where} were revoked before."
    else:
        place = shown_where if cluster is not None else "any cluster"
        done = f"There is no unexpired certificate of {shown_owner} in {place}."
    return Found(path, question, preview["cluster_name"], done)


def _has_unexpired(client: "AdministrationClient", user: "JsonObject", cluster: "JsonObject | None") -> bool:
    """Whether a user has unexpired certificates for a cluster, or for any cluster. Revoked certificates count."""
    path = cluster_path(cluster, "certificates") if cluster is not None else "/certificates"
    of_user = {"user": str(user["id"])}
    if cluster is None and not client.reads_everything:
        of_user = dict(_OWN)
    query = {**of_user, "expires_after": rfc3339(utc_now())}
    return next(client.list_all(path, "certificates", **query), None) is not None


def _effect(enforcement: "JsonObject", cluster: object) -> str:
    """Describe the effect of a revocation."""
    refuses, names = enforcement["refuses"], cast("list[str]", enforcement["enforced_by"])
    if refuses is None:
        return "Revoked. Clusters that enforce revocations refuse the certificates."
    state = cast("EnforcementState", enforcement["enforcement"])
    seen = enforcement_text(state, cast("str | None", enforcement["webhook_called_at"]))
    if refuses == "none":
        return (
            f"Revoked, but no refusal is expected in the cluster {cluster}. {enforcement['lacking'] or seen}"
        )
    if "account" in names:
        return f"Revoked in the cluster {cluster}. {ACCOUNT_WITHIN} {enforcement['does_not_stop']}"
    by, rest = f"by {enforcement['expected_by']}", ""
    effect = f"Refusal expected {by} ({' and '.join(names)})."
    if refuses == "writes":
        effect = f"Refusal of writes expected {by} (admission)."
        rest = " The API server accepts reads until the certificate expires."
    elif refuses == "bound":
        effect = f"Refusal of certificates with a binding expected {by}."
        only = "refuses only writes with" if "admission" in names else "accepts"
        rest = f" The API server {only} the other certificates until they expire."
    return (
        f"Revoked in the cluster {cluster}. {effect}{rest} {seen} To see whether the API server refused it, run"
        " `clustercert certificate access`."
    )


def _undo_hint(client: "AdministrationClient", made: "JsonObject") -> str:
    if made["can_be_undone"] is not True or not client.is_operator:
        return ""
    return f" To undo the revocation, run `clustercert certificate undo {made['id']}` soon."


app = typer.Typer(
    name="certificate",
    help="List, show and revoke certificates, and see who has access.",
    no_args_is_help=True,
)

_TABLE_LINES = 100
_COLUMNS = (
    "certificate",
    "state",
    "user_name",
    "cluster",
    "not_after",
    "last_seen_at",
    "project",
    "groups",
    "fingerprint",
)
AllOption = Annotated[
    bool, typer.Option("--all", help="List all certificates that you may see, not only yours.")
]


@dataclass(frozen=True, slots=True)
class FilterOptions:
    """The options that filter a list of certificates. The fields are named like the API's query parameters."""

    state: Annotated[CertificateState | None, typer.Option(help="List only certificates in this state.")] = (
        None
    )
    expires_before: Annotated[
        datetime | None,
        typer.Option(
            parser=future_time,
            metavar="TIME",
            help="List only certificates that expire before TIME: RFC 3339, or a duration from now such as "
            "7d.",
        ),
    ] = None
    expires_after: Annotated[
        datetime | None,
        typer.Option(
            parser=future_time, metavar="TIME", help="List only certificates that expire at or after TIME."
        ),
    ] = None
    key_origin: Annotated[
        KeyOrigin | None,
        typer.Option(help="List only certificates whose key the service created, or only those from a CSR."),
    ] = None
    kind: Annotated[
        CredentialKind | None,
        typer.Option(help="List only certificates, or only tokens of service accounts."),
    ] = None
    seen_before: Annotated[
        datetime | None,
        typer.Option(
            parser=past_time,
            metavar="TIME",
            help="List only certificates last used before TIME: RFC 3339, or a duration before now such as "
            "7d.",
        ),
    ] = None
    seen_after: Annotated[
        datetime | None,
        typer.Option(
            parser=past_time, metavar="TIME", help="List only certificates last used at or after TIME."
        ),
    ] = None
    never_seen: Annotated[
        bool,
        typer.Option("--never-seen", help="List only certificates that were never used at an API server."),
    ] = False
    access_request: Annotated[
        str | None,
        typer.Option(metavar="REQUEST", help="List only certificates of the access request with this id."),
    ] = None
    domain: Annotated[
        str | None,
        typer.Option(metavar="DOMAIN", help="List only certificates for clusters of this domain, by name."),
    ] = None
    certificate: Annotated[
        str | None,
        typer.Option(
            metavar="DIGITS",
            help="List only certificates whose fingerprint begins with these digits, or with this number.",
        ),
    ] = None
    revoked_use_after: Annotated[
        datetime | None,
        typer.Option(
            parser=past_time,
            metavar="TIME",
            help="List only certificates that an API server accepted after their revocation, since TIME.",
        ),
    ] = None
    accepted: Annotated[
        bool,
        typer.Option(
            "--accepted", help="List only revoked certificates that clusters accept until they expire."
        ),
    ] = False
    without_own: Annotated[
        bool,
        typer.Option("--without-own", help="Leave out the certificates of the service itself."),
    ] = False

    def query(self, client: "AdministrationClient") -> dict[str, str]:
        """Return the query parameters of the API request.

        Raises ClientError, UnknownName or CommandError if the access request is not found.
        """
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        texts = {
            name: rfc3339(value) if isinstance(value, datetime) else str(value).lower()
            for name, value in given.items()
            if value is not None and value is not False
        }
        if self.access_request is not None:
            texts["access_request"] = full_id(client, self.access_request)
        return texts


@app.command("list")
@on_service
def list_certificates(
    client: "AdministrationClient",
    filters: FilterOptions,
    everything: AllOption = False,
    cluster: OnlyClusterOption = None,
    project: OnlyProjectOption = None,
    user: OnlyUserOption = None,
    limit: ListLimitOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List your certificates, newest first.

    With --cluster, --project, --user or --all, lists all certificates that you may see. Operators, auditors and admins
    of a project see the certificates of all users, including the certificates that `kubernetes verify` got and revoked
    (user `clustercert:verify`). `certificate access` leaves these certificates out. While the client CA of one of the
    clusters is being replaced, the column `client_ca_state` shows which certificates end with the old CA (`retiring`).
    The column `access_request_id` appears if a certificate has groups of an access request, and the column `kind` if a
    credential is a token.

    Examples:
        clustercert certificate list
        clustercert certificate list --cluster prod --state live
        clustercert certificate list --user alice --output csv
    """
    # Only tables are short by default. Programs read the other formats, and would mistake a partial list for a complete
    # list.
    limit = limit or (_TABLE_LINES if output is Output.TABLE else MAX_LINES)
    scope = Scope(everything, cluster, project, user)
    found, more = search_certificates(client, scope, filters.query(client), limit)
    is_table = output is Output.TABLE
    rows: Sequence[Row] = [with_names(each) if is_table else with_times(each) for each in found]
    # In a list of only the caller's own certificates, each row has the same user, so a normal table omits the user.
    is_own = client.is_user and scope == Scope()
    columns = [each for each in _COLUMNS if each != "user_name" or not is_own or is_wide()]
    if any(each.get("client_ca_state") in ("retiring", "retired") for each in found):
        columns.insert(columns.index("not_after"), "client_ca_state")
    if any(each.get("kind") == "token" for each in found):
        columns.insert(columns.index("state"), "kind")
    if any(each.get("access_request_id") for each in found):
        columns.insert(columns.index("not_after") + 1, "access_request_id")
    keep = ["state", *([] if is_own else ["user_name"]), "cluster", "not_after"]
    if is_table:
        rows = with_qualified_names(rows, "user_name", "user_domain")
        rows = with_qualified_names(rows, "project", "project_domain")
        if _share_names(rows):
            keep.append("project")
    name = "certificate" if is_table else "fingerprint"
    empty = "No certificate that you may see matches."
    if is_own:
        empty = "None of your certificates matches. Add --all to search all certificates that you may see."
    elif user is not None:
        empty = f"No certificate of the user {user} matches."
    show_list(rows, output, columns=columns, name=name, keep=keep, empty=empty)
    if more:
        print_note(f"Only the first {len(rows)} are listed. Raise --limit, or filter the list.")


@app.command()
@on_service
def show(
    client: "AdministrationClient",
    certificate: Annotated[
        str,
        typer.Argument(
            metavar="CERTIFICATE",
            help=f"Fingerprint or its first {MIN_DIGITS} digits, credential number or serial, or JTI=ID of a token.",
        ),
    ],
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a certificate or a token. JSON and YAML also contain the PEM of a certificate. The service stores no tokens.

    `credential_id` is the credential's name in audit logs of API servers.

    Examples:
        clustercert certificate show 2f9c1a7e5b3d8046
        clustercert certificate show JTI=8cfdf40c-2a6c-4c4b-a6fb-67b2c2a2a4d7
    """
    found, _ = find_certificate(client, certificate)
    row = with_times(found)
    if output is Output.TABLE:
        del row["pem"]
    show_one(row, output, name="fingerprint")


app.command("revoke")(revoke)
app.command("undo")(undo)
app.command("revocations")(revocations)
app.command("access")(access.show_access)
