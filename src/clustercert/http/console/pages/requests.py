"""Access requests: lists, one request with its steps and decisions, and the form for a new request."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from clustercert.http.console.api import path
from clustercert.http.console.cluster_address import command_name
from clustercert.http.console.visits import PREFIX, Pages, Visit, login_address, raise_fault
from clustercert.model import JsonObject, utc_now
from clustercert.model.errors import ClustercertError, NotFound
from clustercert.model.rights import reads_project
from clustercert.policy.lifetime import MIN_LIFETIME, lifetime_option, lifetime_text
from clustercert.requests.views import approver_words

pages = Pages()

_HOME = f"{PREFIX}/requests"
_API = path("access-requests")
_SHORT_LIST = 20
_PAGE = 100
# The API reads this many requests, and returns only requests that the person can decide. The page may be empty.
_PAGE_TO_DECIDE = 200
_SHOWN_DIGITS = 8
_MAX_CLUSTERS = 100
_LISTS = {"mine": {"mine": "true"}, "decide": {"to_decide": "true"}, "all": {}}
_TITLES = {"mine": "Your requests", "decide": "Waiting for your decision", "all": "All requests"}
_STATES = ("open", "closed", "pending", "approved", "active", "denied", "expired", "ended", "finished")
_EVERY_STATE = "any"
_DEFAULT_SECONDS = 3600
# The times that the form offers, up to the longest time of the offer.
_TIMES = [
    *(timedelta(minutes=each) for each in (15, 30)),
    *(timedelta(hours=each) for each in (1, 2, 4, 8, 12)),
    *(timedelta(days=each) for each in (1, 2, 7, 30)),
]


@pages.get("/requests")
async def lists(visit: Visit) -> Response:
    """Show what waits for the visitor, and the visitor's open requests; or one whole list with filters."""
    name = visit.query.get("list", "")
    if name in _LISTS:
        return await _one_list(visit, name)
    open_requests = {"state": "open"}
    decide, older = await _found(visit, _LISTS["decide"], _PAGE_TO_DECIDE)
    mine, more_of_mine = await _found(visit, open_requests | _LISTS["mine"], _SHORT_LIST)
    return visit.render(
        "requests.html",
        live=True,
        decide=decide[:_SHORT_LIST],
        more_to_decide=len(decide) > _SHORT_LIST or older is not None,
        mine=mine,
        more_of_mine=more_of_mine is not None,
    )


async def _one_list(visit: Visit, name: str) -> Response:
    # Access that was used before its approval waits for a decision also after its end.
    state = visit.query.get("state", _EVERY_STATE if name == "decide" else "open")
    wanted = visit.query.get("cluster", "").strip()
    chosen = {"list": name, "state": state} | ({"cluster": wanted} if wanted else {})
    rows, following, clusters = list[Any](), None, list[Any]()
    if wanted:
        clusters = await _clusters_named(visit, wanted)
    if not wanted or len(clusters) == 1:
        filters = dict(_LISTS[name])
        filters |= {"state": state} if state != _EVERY_STATE else {}
        filters |= {"cluster": clusters[0]["id"]} if clusters else {}
        limit = _PAGE_TO_DECIDE if name == "decide" else _PAGE
        rows, following = await _found(visit, filters, limit, visit.query.get("cursor"))
    first = f"{_HOME}?{urlencode(chosen)}"
    return visit.render(
        "requests_list.html",
        live=True,
        name=name,
        titles=_TITLES,
        state=state,
        states=(*_STATES, _EVERY_STATE),
        cluster=wanted,
        clusters=clusters,
        rows=rows,
        first=first if "cursor" in visit.query else None,
        following=f"{first}&{urlencode({'cursor': following})}" if following is not None else None,
    )


async def _found(
    visit: Visit, filters: dict[str, str], limit: int, cursor: str | None = None
) -> tuple[list[Any], str | None]:
    """Return the requests on a page, and the cursor of the next page."""
    page = await visit.api.get(_API, **filters, limit=limit, cursor=cursor)
    return page["access_requests"], page["next"]


async def _clusters_named(visit: Visit, name: str) -> list[Any]:
    """Return the clusters with this name or id that the visitor can reach. An id takes precedence over a name."""
    if not name.isprintable():
        return []
    found = (await visit.api.get(path("clusters"), name=name))["clusters"]
    return [each for each in found if each["id"] == name] or list(found)


@pages.get("/requests/new")
async def new(visit: Visit) -> Response:
    """Let the visitor choose a cluster, then an offer; show the form for the offer."""
    given = visit.form or visit.query
    return await _form(visit, given.get("cluster", "").strip(), given.get("rule"), given)


async def _form(
    visit: Visit, wanted: str, rule: str | None, typed: Any, failure: ClustercertError | None = None
) -> Response:
    """Return the page of the form.

    Args:
        wanted: the name or id of a cluster, or an empty string.
        typed: the fields of the form that the visitor has filled in.
        failure: why the API refused the request.
    """
    found = await _clusters_named(visit, wanted) if wanted else []
    if len(found) != 1:
        return await _choice_of_cluster(visit, wanted, found, failure)
    [cluster] = found
    offers = (await visit.api.get(path("clusters", cluster["id"], "offers")))["offers"]
    mine = {"mine": "true", "state": "open", "cluster": cluster["id"]}
    open_requests = (await visit.api.get(_API, **mine, limit=1))["access_requests"]
    chosen = [each for each in offers if each["rule"] == rule] or (offers if len(offers) == 1 else [])
    offer = chosen[0] if chosen else None
    return visit.render(
        "request_new.html",
        failure=failure,
        cluster=cluster,
        offers=offers,
        offer=offer,
        groups=_chosen_groups(offer, typed) if offer is not None else [],
        times=_times(offer) if offer is not None else [],
        default_time=min(offer["max_lifetime"], _DEFAULT_SECONDS) if offer is not None else None,
        open_request=open_requests[0] if open_requests else None,
        typed=typed,
    )


async def _choice_of_cluster(
    visit: Visit, wanted: str, found: list[Any], failure: ClustercertError | None
) -> Response:
    clusters = found
    is_whole = True
    if not wanted:
        page = await visit.api.get(path("clusters"), own="true", order="name", limit=_MAX_CLUSTERS)
        clusters, is_whole = page["clusters"], page["next"] is None
    return visit.render(
        "request_cluster.html",
        failure=failure,
        wanted=wanted,
        clusters=sorted(clusters, key=lambda each: (each["name"], each["project"])),
        is_whole=is_whole,
    )


def _chosen_groups(offer: Any, typed: Any) -> list[tuple[str, bool]]:
    """Return the offer's groups, each with whether it is chosen. If the offer has one group, it is chosen."""
    chosen = {*_group_fields(typed), typed.get("group")}
    return [(each, each in chosen or len(offer["groups"]) == 1) for each in offer["groups"]]


def _group_fields(fields: Any) -> list[str]:
    """Return the values of the form's boxes, whose names are `group-0`, `group-1` and so on."""
    return [value for name, value in fields.items() if name.startswith("group-")]


def _times(offer: Any) -> list[tuple[int, str]]:
    """Return the times that the form offers: seconds, and text."""
    longest = timedelta(seconds=offer["max_lifetime"])
    times = sorted({*(each for each in _TIMES if each <= longest), max(longest, MIN_LIFETIME)})
    return [(int(each.total_seconds()), lifetime_text(each)) for each in times]


# At most 64 groups of 255 characters, with escapes.
@pages.post("/requests/new", limit=64 * 1024, keep=True)
async def create(visit: Visit) -> Response:
    cluster_id, rule = visit.value("cluster"), visit.value("rule")
    body: JsonObject = {
        "cluster_id": cluster_id,
        "rule": rule,
        "groups": _group_fields(visit.form),
        "duration": _seconds(visit),
        "reason": visit.value("reason"),
        "ticket": visit.value("ticket") or None,
    }
    try:
        answer = await visit.api.send("POST", _API, body=body)
    except ClustercertError as failure:
        raise_fault(failure)
        return await _form(visit, cluster_id, rule, visit.form, failure)
    made = answer.json
    is_new = answer.status == HTTPStatus.CREATED
    return visit.redirect(
        f"{_HOME}/{made['id']}",
        "Your request was created."
        if is_new
        else "You have this open request already, so no new request was created. The reason and ticket of"
        " the open request stay as they are.",
    )


def _seconds(visit: Visit) -> int:
    """Return the chosen time; 0 for a value that the form does not offer, which the API refuses."""
    return visit.number("duration") or 0


@dataclass(frozen=True, slots=True)
class _Step:
    """What happened with a request, when (RFC 3339), by whom, and what they said."""

    at: str
    what: str
    by: str | None = None
    said: str | None = None


@pages.get("/requests/{request_id}")
async def show(visit: Visit) -> Response:
    return await _request_page(visit)


async def _request_page(visit: Visit, failure: ClustercertError | None = None) -> Response:
    """Return the page of a request. `failure`: why the API refused what a form asked for."""
    request = await visit.api.get(path("access-requests", visit.part("request_id")))
    is_own = request["user"]["id"] == visit.me.caller.user.id
    address = f"{_HOME}/{request['id']}"
    is_fresh = visit.me.session.has_recent_login(utc_now())
    return visit.render(
        "request.html",
        failure=failure,
        live=failure is None,
        request=request,
        home=address,
        is_own=is_own,
        part="access" if request["approved_at"] is None else "extension",
        duration=lifetime_text(timedelta(seconds=request["duration"])),
        longer=lifetime_text(timedelta(seconds=request["extension"]["duration"]))
        if request["extension"] is not None
        else None,
        steps=sorted(_steps(request), key=lambda each: each.at),
        certificates=await _certificates(visit, request, is_own=is_own),
        commands=_commands(request) if is_own and request["due_at"] is not None else None,
        times=await _extension_times(visit, request) if "extend" in request["may"] else [],
        only_deny=_why_only_deny(visit, request),
        typed=visit.form,
        login=None if is_fresh else login_address(address, again=True),
    )


def _why_only_deny(visit: Visit, request: Any) -> str | None:
    """Return why the visitor can deny, but not approve, what waits for a decision; None if there is no such reason."""
    if "deny" not in request["may"] or "approve" in request["may"]:
        return None
    missing = [approver_words(each["condition"]) for each in request["conditions"] if not each["approved_by"]]
    others = f"Only one person {' and one person '.join(missing)} can approve."
    part = "access" if request["approved_at"] is None else "extension"
    has_approved = any(
        (each["by"], each["part"], each["approves"]) == (visit.me.caller.user.id, part, True)
        for each in request["decisions"]
    )
    return f"You approved already. {others}" if has_approved else others


def _steps(request: Any) -> Iterator[_Step]:
    """Yield what has happened with a request."""
    yield _Step(request["created_at"], "asked for access", request["user"]["name"], request["reason"])
    for each in request["decisions"]:
        part = " the extension" if each["part"] == "extension" else ""
        verb = "approved" if each["approves"] else "denied"
        yield _Step(each["at"], f"{verb}{part}", each["by_name"], each["reason"])
    if request["approved_at"] is not None and not request["conditions"]:
        yield _Step(request["approved_at"], "needed no approval")
    if request["started_at"] is not None:
        yield _Step(
            request["started_at"], "got the first certificate, and the time began", request["user"]["name"]
        )
    if request["closed_at"] is not None and request["state"] != "denied":
        yield _Step(request["closed_at"], str(request["state"]), request["closed_by"], request["closed_why"])


async def _certificates(visit: Visit, request: Any, *, is_own: bool) -> list[Any]:
    """Return the newest certificates of a request that the visitor may see."""
    project_id = request["project"]["id"]
    # For other approvers, the API would record a refused request each time the page updates itself.
    if request["started_at"] is None or not (is_own or reads_project(visit.me.caller, project_id)):
        return []
    where = path("certificates") if is_own else path("projects", project_id, "certificates")
    own = "true" if is_own else None
    try:
        page = await visit.api.get(where, own=own, access_request=request["id"], limit=_SHORT_LIST)
    except NotFound:
        return []
    return list(page["certificates"])


def _commands(request: Any) -> dict[str, str]:
    """Return the commands with which the user of a request uses the access."""
    project, cluster = request["project"], request["cluster"]
    place = (
        command_name({**cluster, "domain": project["domain"], "project": project["name"]})
        if project["name"]
        else cluster["id"]
    )
    groups = [part for each in request["groups"] for part in ("--group", each)]
    length = lifetime_option(timedelta(seconds=request["duration"]))
    same = ["--for", length, "--reason", request["reason"], "--rule", request["rule"]]
    return {
        "kubectl": shlex.join(["clustercert", "request", "create", place, *groups, *same]),
        "job": shlex.join(
            ["clustercert", "kubeconfig", "get", place, "--request", request["id"][:_SHOWN_DIGITS]]
        ),
    }


async def _extension_times(visit: Visit, request: Any) -> list[tuple[int, str]]:
    """Return the times by which the visitor's own access can be extended."""
    try:
        offers = (await visit.api.get(path("clusters", request["cluster"]["id"], "offers")))["offers"]
    except NotFound:
        # The cluster was removed, or the visitor has no role in its project any more.
        return []
    return next((_times(each) for each in offers if each["rule"] == request["rule"]), [])


def _address(visit: Visit) -> str:
    return f"{_HOME}/{visit.part('request_id')}"


@pages.post("/requests/{request_id}/approve", fresh=_address)
async def approve(visit: Visit) -> Response:
    return await _step(visit, "approve", _decision(visit), "You approved")


@pages.post("/requests/{request_id}/deny", keep=True)
async def deny(visit: Visit) -> Response:
    return await _step(visit, "deny", _decision(visit), "You denied")


def _decision(visit: Visit) -> JsonObject:
    return {"reason": visit.value("reason"), "part": visit.value("part") or None}


@pages.post("/requests/{request_id}/extend", keep=True)
async def extend(visit: Visit) -> Response:
    body: JsonObject = {"duration": _seconds(visit), "reason": visit.value("reason")}
    return await _step(visit, "extend", body, "You asked for more time for")


@pages.post("/requests/{request_id}/end", keep=True)
async def end(visit: Visit) -> Response:
    return await _step(visit, "end", {"reason": visit.value("reason") or None}, "You ended")


async def _step(visit: Visit, step: str, body: JsonObject, done: str) -> Response:
    """Change a request. If the API refuses the change, show the page again, with the message and the typed values."""
    try:
        changed = await visit.api.post(path("access-requests", visit.part("request_id"), step), body)
    except NotFound:
        raise
    except ClustercertError as failure:
        raise_fault(failure)
        return await _request_page(visit, failure)
    return visit.redirect(_address(visit), f"{done} the request of {changed['user']['name']}.")
