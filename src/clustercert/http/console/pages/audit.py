"""The audit log: a list of events, one event with its proof, and an export. For users to whom the API shows events."""

import json
import re
import shlex
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response, StreamingResponse

from clustercert.http.console.api import path
from clustercert.http.console.event_sentences import Part, cluster_of, cluster_page, describe, names_in
from clustercert.http.console.named_objects import cluster_named, project_named, user_named
from clustercert.http.console.visits import PREFIX, Pages, Visit, sees_others
from clustercert.http.context import context_of
from clustercert.merkle.notes import VerifierKey, verify_checkpoint
from clustercert.merkle.proof_files import ProofFile
from clustercert.model import JsonObject
from clustercert.model.errors import Forbidden, InvalidRequest, NotFound
from clustercert.model.events.names import CLUSTER_ACTOR, shown_name, subject_name
from clustercert.model.rights import ADMIN, reads_everything

pages = Pages()

_AUDIT = f"{PREFIX}/audit"
_PAGE = 50
# A page of the API may be empty, although there are further events. So the console reads several pages of the API for
# each of its pages.
_READS = 4
_EXPORT_PAGE, _EXPORT_READS, _EXPORTED = 500, 200, 10_000
_PLAIN = "text/plain"
_FILTERS = ("user", "cluster", "project", "kind", "since", "until", "request", "object", "verifications")
# The format in which a form field sends a time; the console reads the time as UTC.
_FORM_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(:\d{2})?", re.ASCII)
_SECONDS_AT = len("2027-01-01T16:00")
# Actors that are not users.
_OTHER_ACTORS = ("cli:", CLUSTER_ACTOR)
_SERVICE_ACTORS = frozenset({"clustercert", "holder", "unknown"})

KINDS = (
    ("", "All kinds"),
    ("certificate.issued", "Certificates issued"),
    ("certificate.refused", "Certificates refused"),
    ("certificate.revoked", "Certificates revoked"),
    ("user.revoked", "All certificates of a person revoked"),
    ("cluster.revoked", "All certificates of a cluster revoked"),
    ("access_request.*", "Access requests"),
    ("credential.*", "Suspicious use of certificates"),
    ("cluster_tokens.*", "Clusters whose credentials are tokens"),
    ("ca_rotation.*", "Rotations of client CAs"),
    ("session.*", "Logins to the console"),
    ("authentication.failed", "Failed logins"),
    ("request.refused", "Refused requests"),
    ("user.*", "Users"),
    ("group.*", "Groups"),
    ("role.*", "Roles"),
    ("access_key.*", "Access keys"),
    ("cluster.*", "Clusters"),
    ("policy.loaded", "Policy changes"),
)


@dataclass(frozen=True, slots=True)
class Selection:
    """The events that a visitor asks for.

    Attributes:
        project_id: None for the events of all projects.
        parameters: query parameters of the API.
        hides_verifications: whether to leave out the events that verifying clusters causes.
    """

    project_id: str | None
    parameters: Mapping[str, str] = field(default_factory=dict)
    hides_verifications: bool = False

    @property
    def path(self) -> str:
        return path("events") if self.project_id is None else path("projects", self.project_id, "events")


@dataclass(frozen=True, slots=True)
class Row:
    """An event in the list. `is_alert`: whether an operator should look at the event."""

    event: JsonObject
    sentence: list[Part]
    project: str | None
    href: str
    is_alert: bool


# The beginnings of the kinds of events that an operator should look at.
ALERTS = (
    "credential.",
    "authentication.failed",
    "certificate.mismatch",
    "certificate.failed",
    "ca_rotation.proof_lost",
    "cluster_tokens.foreign",
    "cluster_tokens.stopped",
    "cluster_tokens.unknown",
)


@pages.get("/audit")
async def list_events(visit: Visit) -> Response:
    given = {name: visit.query.get(name, "").strip() for name in _FILTERS}
    projects = await _projects(visit)
    values: dict[str, Any] = {
        "given": given,
        "times": {name: _for_form(given[name]) for name in ("since", "until")},
        "kinds": [*KINDS, *([(given["kind"],) * 2] if given["kind"] not in dict(KINDS) else [])],
        "projects": None if reads_everything(visit.me.caller) else projects,
    }
    try:
        selection = await _selection(visit, given, projects)
        found = await _read(visit, selection, visit.query.get("cursor"))
        found.names |= await _more_names(visit, projects, found.events)
    except (InvalidRequest, NotFound) as failure:
        return visit.render("audit.html", failure=failure, rows=(), **values)
    query = {name: value for name, value in given.items() if value}
    return visit.render(
        "audit.html",
        rows=[_row(visit, each, found) for each in found.events],
        hidden=found.hidden,
        next=f"{_AUDIT}?{urlencode(query | {'cursor': found.next})}" if found.next is not None else None,
        first=f"{_AUDIT}?{urlencode(query)}" if "cursor" in visit.query else None,
        with_verifications=f"{_AUDIT}?{urlencode(query | {'verifications': '1'})}",
        export=f"{_AUDIT}/export?{urlencode(query)}",
        is_filtered=bool(query.keys() - {"verifications"}),
        selected=selection.project_id,
        **values,
    )


@pages.get("/audit/export")
async def export(visit: Visit) -> Response:
    """Send the selected events as JSON lines, newest first. The last line has `next`: null, or where to continue."""
    given = {name: visit.query.get(name, "").strip() for name in _FILTERS}
    selection = await _selection(visit, given, await _projects(visit))
    first = await visit.api.get(selection.path, limit=_EXPORT_PAGE, **selection.parameters)
    headers = {
        "Content-Disposition": 'attachment; filename="clustercert-events.jsonl"',
        "Cache-Control": "no-store",
    }
    return StreamingResponse(_lines(visit, selection, first), 200, headers, "application/jsonl")


async def _lines(visit: Visit, selection: Selection, page: Any) -> AsyncIterator[bytes]:
    """Yield pages of JSON lines. A failure breaks the connection, so that the browser reports it."""
    left = _EXPORTED
    for _ in range(_EXPORT_READS):
        left -= len(page["events"])
        yield b"".join(json.dumps(each, ensure_ascii=True).encode() + b"\n" for each in page["events"])
        if page["next"] is None or left == 0:
            break
        context_of(visit.request).extend_deadline()
        limit = min(_EXPORT_PAGE, left)
        page = await visit.api.get(selection.path, limit=limit, cursor=page["next"], **selection.parameters)
    yield json.dumps({"next": page["next"]}).encode() + b"\n"


@pages.get("/audit/{leaf_index}")
async def show_event(visit: Visit) -> Response:
    place = await _place(visit)
    event = await visit.api.get(place)
    proof = (await visit.api.send("GET", f"{place}/proof", accept=_PLAIN)).body.decode()
    key = (await visit.api.send("GET", path("audit", "log", "key"), accept=_PLAIN)).body.decode().strip()
    names = event["names"] | await _more_names(visit, await _projects(visit), (event,))
    file = f"event-{event['leaf_index']}.proof"
    suffix = _suffix(visit, event)
    return visit.render(
        "event.html",
        event=event,
        sentence=describe(event, names),
        actor=shown_name(str(event["actor"]), names),
        subject=subject_name(str(event["subject"]), event["detail"], names),
        project=names.get(event["project_id"], event["project_id"]),
        detail=json.dumps(event["detail"], indent=2, ensure_ascii=True),
        related=_related(visit, event, names),
        proof=proof,
        size=verify_checkpoint(ProofFile.parse(proof).checkpoint, VerifierKey.parse(key)).size,
        download=f"{_AUDIT}/{event['leaf_index']}/proof{suffix}",
        file=file,
        command=f"clustercert audit verify --proof {file} --key {shlex.quote(key)}",
    )


@pages.get("/audit/{leaf_index}/proof")
async def download_proof(visit: Visit) -> Response:
    place = await _place(visit)
    proof = await visit.api.send("GET", f"{place}/proof", accept=_PLAIN)
    name = place.rpartition("/")[2]
    headers = {
        "Content-Disposition": f'attachment; filename="event-{name}.proof"',
        "Cache-Control": "no-store",
    }
    return Response(proof.body, 200, headers, _PLAIN)


async def _place(visit: Visit) -> str:
    """Return the API's path of the event that the address names. Raises NotFound."""
    leaf_index = visit.part("leaf_index")
    if not (leaf_index.isascii() and leaf_index.isdecimal()):
        raise NotFound(f"There is no event {leaf_index[:64]}. Events have numbers, such as {_AUDIT}/4711.")
    projects = await _projects(visit)
    project_id = await project_named(visit, visit.query.get("project", ""), projects)
    return f"{Selection(project_id).path}/{leaf_index}"


async def _projects(visit: Visit) -> Mapping[str, str]:
    """Return the names of the projects whose events the visitor may see in any case, by id: those they administer.

    Raises Forbidden if the visitor may see no events.
    """
    if not sees_others(visit.me.caller):
        raise Forbidden("Only operators, auditors and project admins can see events.")
    caller = await visit.api.get(path("caller"))
    return {
        each["id"]: f"{each['domain']}/{each['name']}"
        for each in caller["projects"]
        if ADMIN in each["roles"] or reads_everything(visit.me.caller)
    }


async def _selection(visit: Visit, given: Mapping[str, str], projects: Mapping[str, str]) -> Selection:
    """Return the events to read. Raises InvalidRequest for an unknown or ambiguous name."""
    project_id = await project_named(visit, given["project"], projects)
    wanted = {
        "kind": given["kind"],
        "since": _as_utc(given["since"]),
        "until": _as_utc(given["until"]),
        "access_request_id": given["request"],
        "subject": given["object"],
    }
    cluster = await cluster_named(visit, given["cluster"], project_id) if given["cluster"] else None
    if cluster is not None:
        project_id, wanted["cluster_id"] = cluster
    user = given["user"]
    if user.startswith(_OTHER_ACTORS) or user in _SERVICE_ACTORS:
        wanted["actor"] = user
    elif user:
        wanted["user_id"] = await user_named(visit, user, cluster)
    parameters = {name: value for name, value in wanted.items() if value}
    asks_for_one = bool(user or given["object"])
    return Selection(project_id, parameters, not (given["verifications"] or asks_for_one))


def _as_utc(text: str) -> str:
    if not _FORM_TIME.fullmatch(text):
        return text
    return f"{text}{'' if len(text) > _SECONDS_AT else ':00'}Z"


def _for_form(text: str) -> str:
    """Return a time in UTC as a form field for times shows it, or an empty string."""
    local = text.removesuffix("Z")
    return local[:_SECONDS_AT] if _FORM_TIME.fullmatch(local) else ""


@dataclass(slots=True)
class _Found:
    """Events from several pages of the API.

    Attributes:
        hidden: how many events were left out.
        next: the cursor of the next page; None on the last page.
    """

    events: list[JsonObject] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    hidden: int = 0
    next: str | None = None


async def _read(visit: Visit, selection: Selection, cursor: str | None) -> _Found:
    found = _Found(next=cursor)
    for _ in range(_READS):
        page = await visit.api.get(
            selection.path, limit=_PAGE - len(found.events), cursor=found.next, **selection.parameters
        )
        hidden = frozenset(page["verifications"] if selection.hides_verifications else ())
        found.events += [each for each in page["events"] if each["leaf_index"] not in hidden]
        found.hidden += len(hidden)
        found.names |= page["names"]
        found.next = page["next"]
        if found.next is None or len(found.events) == _PAGE:
            break
    return found


async def _more_names(
    visit: Visit, projects: Mapping[str, str], events: Iterable[JsonObject]
) -> dict[str, str]:
    """Return names for project admins, for whom the API names nobody in a list of events.

    The admin sees these names anyway: their own name, the names of their projects and clusters, and names in the
    events.
    """
    if reads_everything(visit.me.caller):
        return {}
    user = visit.me.caller.user
    listed = await visit.api.get(path("clusters"), own="true")
    clusters = {
        str(each["id"]): f"{each['domain']}/{each['project']}/{each['name']}" for each in listed["clusters"]
    }
    return {**clusters, **projects, **names_in(events), user.id: user.shown_name}


def _row(visit: Visit, event: JsonObject, found: _Found) -> Row:
    project_id = event["project_id"]
    return Row(
        event,
        describe(event, found.names),
        found.names.get(str(project_id)) if project_id is not None else None,
        f"{_AUDIT}/{event['leaf_index']}{_suffix(visit, event)}",
        str(event["kind"]).startswith(ALERTS),
    )


def _suffix(visit: Visit, event: JsonObject) -> str:
    """Return the query of an event's page: project admins read an event as an event of their project."""
    if reads_everything(visit.me.caller) or event["project_id"] is None:
        return ""
    return f"?{urlencode({'project': event['project_id']})}"


def _related(visit: Visit, event: JsonObject, names: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return titles and addresses of pages and lists about what an event mentions."""
    detail: Any = event["detail"]
    actor, subject, kind = str(event["actor"]), str(event["subject"]), str(event["kind"])
    scope = {} if reads_everything(visit.me.caller) else {"project": str(event["project_id"])}
    found: list[tuple[str, str]] = []

    def listed(title: str, **query: str) -> None:
        found.append((title, f"{_AUDIT}?{urlencode(scope | query)}"))

    try:
        cluster = cluster_of(event)
    except LookupError:
        cluster = None
    if cluster is not None:
        page = cluster_page(event, cluster[0])
        if page is not None:
            found.append(("Who can get into this cluster", page))
        listed("All events of this cluster", cluster=cluster[0])
    request = detail.get("access_request")
    request_id = subject if kind.startswith("access_request.") else (request or {}).get("id")
    if request_id:
        found.append(("The access request", f"{PREFIX}/requests/{request_id}"))
        listed("All events of this access request", request=str(request_id))
    if detail.keys() & {"serial", "credential_number"}:
        found.append(("The certificate", f"{PREFIX}/certificates/{subject}"))
        listed("All events of this certificate", object=subject)
    user_id = detail.get("user_id")
    if isinstance(user_id, str) and user_id != actor:
        listed(f"All events of {shown_name(user_id, names)}", user=user_id)
    listed(f"All events of {shown_name(actor, names)}", user=actor)
    listed(f"All events of the kind {kind}", kind=kind)
    return found
