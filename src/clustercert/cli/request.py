"""`clustercert request`: requests access for a limited time, decides about other users' requests, and ends access."""

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from clustercert.cli.commands import expand_options
from clustercert.cli.credential.access_request import PATH, SHOWN_DIGITS, find_request, offers_of, shown_id
from clustercert.cli.login.options import LoginOptions
from clustercert.cli.options import (
    MAX_LINES,
    UNAVAILABLE,
    ClusterArgument,
    CommandError,
    InProjectOption,
    InvalidOption,
    ListLimitOption,
    OnlyClusterOption,
    OnlyProjectOption,
    ProjectDomainOption,
    exit_code,
    parse_duration,
)
from clustercert.cli.terminal.output import (
    Output,
    OutputOption,
    Table,
    field_lines,
    is_wide,
    print_note,
    show_list,
    show_one,
    time_text,
    with_times,
    write_out,
)
from clustercert.model.errors import ClustercertError
from clustercert.model.identity import DEFAULT_DOMAIN
from clustercert.model.ids import is_id
from clustercert.model.times import parse_rfc3339, rfc3339, utc_now

if TYPE_CHECKING:
    from clustercert.cli.login.profile import Profile
    from clustercert.client import Client
    from clustercert.client.connection import ApiResponse
    from clustercert.model import JsonObject

app = typer.Typer(
    name="request",
    help="Request access for a limited time, and decide about other users' requests.",
    no_args_is_help=True,
)

_TABLE_LINES = 100
_COLUMNS = (
    "request",
    "state",
    "user",
    "cluster",
    "groups",
    "may",
    "until",
    "approvals",
    "rule",
    "ticket",
    "reason",
)
_OFFER_COLUMNS = (
    "groups",
    "max_lifetime",
    "approvals",
    "rule",
    "before_approval",
    "uses_before_approval",
    "approve_within",
    "claim_within",
    "min_reason_length",
)
_WATCH_SECONDS, _RETRY_SECONDS = 2.0, 5.0
_CLEAR_SCREEN = "\x1b[H\x1b[2J"

RequestArgument = Annotated[
    str,
    typer.Argument(
        metavar="REQUEST", help=f"Id of the access request, or at least its first {SHOWN_DIGITS} digits."
    ),
]


ForOption = Annotated[
    timedelta,
    typer.Option(
        "--for", parser=parse_duration, metavar="DURATION", help="Duration of the access, such as 30m or 1h."
    ),
]
DecisionReasonOption = Annotated[
    str,
    typer.Option(
        "--reason", metavar="TEXT", help="Reason. The user sees the reason, and the audit log records it."
    ),
]
ExtensionOption = Annotated[
    bool, typer.Option("--extension", help="Decide about the extension of approved access.")
]


@app.command()
@expand_options
def create(
    cluster: ClusterArgument,
    groups: Annotated[
        list[str],
        typer.Option(
            "--group", metavar="NAME", help="Kubernetes group; can be repeated. See `request offers`."
        ),
    ],
    duration: ForOption,
    reason: Annotated[
        str,
        typer.Option(
            "--reason",
            metavar="TEXT",
            help="Reason. The approvers see the reason, and the audit log records it.",
        ),
    ],
    login: LoginOptions,
    ticket: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Name of a ticket in another system.")
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Policy rule; required if several rules offer the groups."),
    ] = None,
    project: InProjectOption = None,
    domain: ProjectDomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Request Kubernetes groups in a cluster for a limited time.

    Does not wait for the approval. As soon as the request is approved, kubectl uses it by itself. The time begins with
    the first certificate. If you already have the same request open, creates no second request.

    Examples:
        clustercert request create prod --group admins --for 1h --reason TICKET-42
    """
    from clustercert.cli.lookup import reachable_cluster

    with _client(login) as (chosen, client):
        found = reachable_cluster(client, chosen, cluster, project, domain)
        project_id = str(found["project_id"])
        client.use_project(project_id)
        body: JsonObject = {
            "project_id": project_id,
            "cluster_id": found["id"],
            "groups": groups,
            "duration": int(duration.total_seconds()),
            "reason": reason,
        }
        body |= {name: text for name, text in (("ticket", ticket), ("rule", rule)) if text is not None}
        response = _send(client, "POST", (), body)
        _show(client, response.body, output)
        if response.status == HTTPStatus.OK:
            print_note(
                "You have this open request already, so no second request was created. The reason and the ticket of"
                " the open request stay as they are."
            )
        with client.check_format():
            _note_use(response.body, chosen, login.saved_name)


@app.command("list")
@expand_options
def list_requests(
    login: LoginOptions,
    everything: Annotated[bool, typer.Option("--all", help="List open and closed requests.")] = False,
    closed: Annotated[bool, typer.Option("--closed", help="List only closed requests.")] = False,
    mine: Annotated[bool, typer.Option("--mine", help="List only your own requests.")] = False,
    to_decide: Annotated[
        bool,
        typer.Option(
            "--to-decide",
            help="List only requests that you can approve, including requests whose access was used and ended"
            " without an approval.",
        ),
    ] = False,
    cluster: OnlyClusterOption = None,
    project: OnlyProjectOption = None,
    limit: ListLimitOption = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Update the list every 2 seconds, until interrupted. Without a terminal, print only changes.",
        ),
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List open access requests, newest first: your own requests, and the requests that you can decide.

    Admins of a project see all requests of their project. Operators and auditors see all requests.

    Examples:
        clustercert request list --to-decide
        clustercert request list --all --cluster prod
    """
    if everything and closed:
        raise InvalidOption("Give only one of --all and --closed.")
    if watch and output is not Output.TABLE:
        raise InvalidOption("--watch prints only tables. Leave out --output.")
    query = {} if everything or (to_decide and not closed) else {"state": "closed" if closed else "open"}
    query |= {name: "true" for name, is_set in (("mine", mine), ("to_decide", to_decide)) if is_set}
    limit = limit or (_TABLE_LINES if output is Output.TABLE else MAX_LINES)
    with _client(login) as (chosen, client):
        query |= _place(client, chosen, cluster, project)
        if watch:
            _watch(client, query, limit)
        found = _listed(client, query, limit + 1)
    shown = found[:limit]
    if output is Output.TABLE:
        _show_table(client, shown)
    else:
        rows = [with_times(each) for each in shown]
        show_list(rows, output, columns=_COLUMNS, name="id")
    if len(found) > limit:
        print_note(f"Only the first {limit} are listed. Raise --limit, or filter the list.")


@app.command()
@expand_options
def show(request: RequestArgument, login: LoginOptions, output: OutputOption = Output.TABLE) -> None:
    """Show a request: the user, the groups, the decisions, who can decide and until when, and what happens next.

    Examples:
        clustercert request show 3f031e99
    """
    with _client(login) as (_, client):
        _show(client, find_request(client, request), output)


@app.command()
@expand_options
def approve(
    request: RequestArgument,
    reason: DecisionReasonOption,
    login: LoginOptions,
    extension: ExtensionOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Approve a request, or with --extension its extension. Nobody can approve their own request.

    Examples:
        clustercert request approve 3f031e99 --reason 'ticket 42, agreed in chat'
    """
    _decide(login, request, "approve", reason, output, extension=extension)


@app.command()
@expand_options
def deny(
    request: RequestArgument,
    reason: DecisionReasonOption,
    login: LoginOptions,
    extension: ExtensionOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Deny a request, or with --extension its extension.

    If the access is already in use before the approval, the access ends at once.

    Examples:
        clustercert request deny 3f031e99 --reason 'not during the freeze'
    """
    _decide(login, request, "deny", reason, output, extension=extension)


@app.command()
@expand_options
def extend(
    request: RequestArgument,
    duration: ForOption,
    reason: DecisionReasonOption,
    login: LoginOptions,
    output: OutputOption = Output.TABLE,
) -> None:
    """Ask for more time, once, while you use the access. The extension needs the same approvals again.

    Examples:
        clustercert request extend 3f031e99 --for 1h --reason 'incident 4711'
    """
    body: JsonObject = {"duration": int(duration.total_seconds()), "reason": reason}
    _step(login, request, "extend", body, output)


@app.command()
@expand_options
def end(
    request: RequestArgument,
    login: LoginOptions,
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="TEXT", help="Reason, for the audit log.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """End access early, and revoke its certificates. Only for the user, approvers and operators.

    Examples:
        clustercert request end 3f031e99
    """
    _step(login, request, "end", {"reason": reason} if reason is not None else {}, output)


@app.command()
@expand_options
def offers(
    cluster: ClusterArgument,
    login: LoginOptions,
    project: InProjectOption = None,
    domain: ProjectDomainOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List which groups you can request in a cluster, for how long, and who must approve.

    Examples:
        clustercert request offers prod
    """
    from clustercert.cli.lookup import full_name, reachable_cluster

    with _client(login) as (chosen, client):
        found = reachable_cluster(client, chosen, cluster, project, domain)
        rows = offers_of(client, str(found["id"]))
    if output is Output.TABLE:
        rows = [_offer_row(each) for each in rows]
    show_list(
        rows,
        output,
        columns=_OFFER_COLUMNS,
        name="rule",
        keep=("groups", "max_lifetime", "approvals"),
        empty=f"The policy offers you no groups in {full_name(found)}. Ask the operator.",
    )


@contextmanager
def _client(login: LoginOptions) -> "Iterator[tuple[Profile, Client]]":
    chosen = login.profile()
    with chosen.explain_rejection(), chosen.client() as client:
        yield chosen, client


def _send(
    client: "Client", method: str, parts: Sequence[str], body: "JsonObject | None" = None
) -> "ApiResponse":
    from clustercert.client.administration import path_of
    from clustercert.client.connection import OWN

    return client.exchange(method, OWN + path_of(PATH, *parts), body=body)


def _step(login: LoginOptions, request: str, step: str, body: "JsonObject", output: Output) -> None:
    """Change a request, with a token for the request's project.

    The exec plugin on this machine then asks about the request.
    """
    from clustercert.cli.credential import access_request, cache

    with _client(login) as (_, client):
        found: Any = find_request(client, request)
        with client.check_format():
            project_id, cluster_id = str(found["project"]["id"]), str(found["cluster"]["id"])
        client.use_project(project_id)
        changed = _send(client, "POST", (str(found["id"]), step), body).body
        if login.saved_name is not None:
            path = cache.path_of(login.saved_name, project_id, cluster_id)
            if path is not None:
                access_request.make_due(path, str(found["id"]))
        _show(client, changed, output)


def _decide(
    login: LoginOptions, request: str, step: str, reason: str, output: Output, *, extension: bool
) -> None:
    """Decide about the part that the user names. Meanwhile, the request may wait for the other part."""
    _step(login, request, step, {"reason": reason, "part": "extension" if extension else "access"}, output)


def _note_use(made: "JsonObject", chosen: "Profile", profile_name: str | None) -> None:
    """Mark the exec plugin's cache, and say how the access is used and who can approve the request."""
    from clustercert.cli.credential import access_request, cache

    made_for: Any = made
    request_id, short = str(made["id"]), shown_id(str(made["id"]))
    if profile_name is None:
        print_note(f"A job uses the request with `clustercert kubeconfig get --request {short}`.")
    elif (
        path := cache.path_of(profile_name, made_for["project"]["id"], made_for["cluster"]["id"])
    ) is not None:
        try:
            access_request.mark(path, request_id, chosen.shown_user)
        except OSError as error:
            raise CommandError(
                f"The request was created, but kubectl will not use it: {path} can't be written ({error.strerror})."
            ) from error
    missing = [each for each in made_for["conditions"] if each["approved_by"] is None]
    if made["state"] == "pending" and missing:
        print_note(
            f"To approve it, somebody else runs `clustercert request approve {short} --reason REASON`."
        )
    if profile_name is not None:
        when = "from the next command on" if made["usable"] else "as soon as it is approved"
        print_note(f"kubectl uses the access by itself {when}, with the profile {profile_name}.")


def _place(client: "Client", chosen: "Profile", cluster: str | None, project: str | None) -> dict[str, str]:
    """Return the query parameters that select a cluster or a project."""
    from clustercert.cli.lookup import in_domain, only_project, reachable_cluster, split_domain

    if cluster is not None:
        return {"cluster": str(reachable_cluster(client, chosen, cluster, project)["id"])}
    if project is None or is_id(project):
        return {} if project is None else {"project": project}
    name, domain = split_domain(project)
    projects = client.projects()
    return {"project": only_project(projects if domain is None else in_domain(projects, domain), name).id}


def _listed(client: "Client", query: dict[str, str], limit: int) -> "list[JsonObject]":
    return list(islice(client.list_all(f"/{PATH}", "access_requests", **query), limit))


def _show_table(client: "Client", found: "Sequence[JsonObject]") -> None:
    with client.check_format():
        rows = [_row(each) for each in found]
        decides = any("approve" in cast("list[str]", each["may"]) for each in found)
    show_list(
        rows,
        Output.TABLE,
        columns=_COLUMNS,
        name="request",
        keep=("state", "user", "cluster", "groups", *(("reason",) if decides else ())),
        empty="There are no such access requests.",
    )


def _watch(client: "Client", query: dict[str, str], limit: int) -> None:
    """Show the list and its changes until the command is interrupted."""
    is_terminal = sys.stdout.isatty()
    changes = _Changes()
    is_available = True
    while True:
        try:
            found = _listed(client, query, limit)
        except ClustercertError as error:
            if exit_code(error) != UNAVAILABLE:
                raise
            if is_available:
                print_note(f"{error.message} Waiting for the service.")
            is_available = False
        else:
            is_available = True
            if is_terminal:
                write_out(f"{_CLEAR_SCREEN}{rfc3339(utc_now())}   Ctrl-C ends this list.\n\n")
                _show_table(client, found)
            else:
                with client.check_format():
                    changes.print(found)
            sys.stdout.flush()
        time.sleep(_WATCH_SECONDS if is_available else _RETRY_SECONDS)


class _Changes:
    """Prints the requests of a list that are new or have changed, as lines of one table."""

    def __init__(self) -> None:
        self._table = Table(_COLUMNS, "request")
        self._seen: dict[str, dict[str, object]] = {}

    def print(self, found: "Sequence[JsonObject]") -> None:
        """Print changes. A request that is no longer in the list gets a last line with the state `gone`."""
        rows = {str(each["id"]): _row(each) for each in found}
        changed = [row for key, row in rows.items() if self._seen.get(key) != row]
        gone = [{**row, "state": "gone", "may": ()} for key, row in self._seen.items() if key not in rows]
        self._table.print([*changed, *gone])
        self._seen = dict(rows)


def _row(request: Any) -> dict[str, object]:
    """Return a table row. Raises LookupError, TypeError or ValueError for a malformed request."""
    needed = len(request["conditions"])
    return {
        "request": shown_id(str(request["id"])),
        "state": request["label"],
        "user": _short_name(str(request["user"]["name"])),
        "cluster": _short_name(_cluster_name(request)),
        "groups": request["groups"],
        "until": _until(request),
        "approvals": f"{request['approvals_given']} of {needed}" if needed else None,
        "may": request["may"],
        "rule": request["rule"],
        "ticket": request["ticket"],
        "reason": request["reason"],
    }


def _cluster_name(request: Any) -> str:
    """Return the cluster's name as DOMAIN/PROJECT/CLUSTER. If the project was deleted, its id replaces the names."""
    project, cluster = request["project"], request["cluster"]["name"]
    return (
        f"{project['id'] if project['name'] is None else project['domain'] + '/' + project['name']}/{cluster}"
    )


def _short_name(name: str) -> str:
    """Return the name of a user or cluster. Leaves out the domain `Default`, except with `-o wide`."""
    return name if is_wide() else name.removeprefix(f"{DEFAULT_DOMAIN}/")


def _until(request: Any) -> datetime | None:
    """Return when an open request changes by itself, or when it was closed."""
    text = request["closed_at"] if request["due_at"] is None else request["due_at"]
    return parse_rfc3339(text) if text is not None else None


def _offer_row(offer: Any) -> Any:
    from clustercert.policy.lifetime import lifetime_option

    times = {
        name: lifetime_option(timedelta(seconds=offer[name]))
        for name in ("max_lifetime", "approve_within", "claim_within")
    }
    return offer | times | {"approvals": offer["approvals"] or "none needed"}


def _show(client: "Client", request: "JsonObject", output: Output) -> None:
    with client.check_format():
        if output is not Output.TABLE:
            show_one(with_times(request), output, name="id")
            return
        described = list(_described(request))
    write_out(f"Access request {request['id']}\n\n")
    field_lines(described)


def _described(request: Any) -> Iterator[tuple[str, str]]:
    """Yield the parts of a request, each with its label, in plain words."""
    from clustercert.policy.lifetime import lifetime_text

    duration = lifetime_text(timedelta(seconds=request["duration"]))
    yield "State", str(request["label"])
    yield "Next", str(request["next"])
    if request["due_at"] is not None:
        yield "Until", _at(request["due_at"])
    if request["next_use_at"] is not None:
        yield "Next use", f"before an approval: {_at(request['next_use_at'])}"
    yield "Who", f"{request['user']['name']}, {_at(request['created_at'])}"
    yield (
        "What",
        f"{', '.join(request['groups'])} in {_cluster_name(request)} for {duration}, by the rule {request['rule']}",
    )
    yield "Why", request["reason"] + (f" (ticket {request['ticket']})" if request["ticket"] else "")
    if request["extension"] is not None:
        longer = lifetime_text(timedelta(seconds=request["extension"]["duration"]))
        yield "Extension", f"{longer}, {request['extension']['state']}: {request['extension']['reason']}"
    for each in request["conditions"]:
        yield "Approval", f"{each['condition']}: {each['approved_by'] or 'missing'}"
    if not request["conditions"]:
        yield "Approval", "none needed"
    for each in request["decisions"]:
        verb = "approved" if each["approves"] else "denied"
        part = " the extension" if each["part"] == "extension" else ""
        yield (
            "Decision",
            f"{each['by_name']} {verb}{part}, {_at(each['at'])}: {each['reason'] or 'no reason'}",
        )
    if request["started_at"] is not None:
        yield "Used", f"since {_at(request['started_at'])}; valid certificates: {request['certificates']}"
    if request["closed_at"] is not None:
        yield "Closed", _at(request["closed_at"])
    for step in request["may"]:
        yield "You can", f"`{_command(step, request)}`"


def _at(text: str) -> str:
    return time_text(parse_rfc3339(text))


def _command(step: str, request: Any) -> str:
    options = {"extend": ["--for", "30m", "--reason", "REASON"], "end": []}.get(step, ["--reason", "REASON"])
    if step in ("approve", "deny") and request["approved_at"] is not None:
        options = ["--extension", *options]
    return shlex.join(["clustercert", "request", step, shown_id(request["id"]), *options])
