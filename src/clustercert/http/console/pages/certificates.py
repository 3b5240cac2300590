"""Certificates: one list over all clusters, the page of a certificate, and how to undo a revocation."""

import json
import re
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from starlette.responses import Response, StreamingResponse

from clustercert.http.certificates import NEXT
from clustercert.http.console.api import Answer, path
from clustercert.http.console.cluster_address import cluster_page, place_of
from clustercert.http.console.named_objects import cluster_named, project_named, user_named
from clustercert.http.console.visits import PREFIX, Pages, Visit, raise_fault, sees_others, with_query
from clustercert.http.context import context_of
from clustercert.http.paging import MAX_PAGE
from clustercert.model import rfc3339, utc_now
from clustercert.model.choices import RefusalState
from clustercert.model.errors import ClustercertError, InvalidRequest, NotFound
from clustercert.model.identity import qualified_name
from clustercert.model.ids import is_long_id
from clustercert.model.refusals import REFUSAL_WORDS
from clustercert.model.rights import ADMIN, administers, reads_everything

pages = Pages()

CERTIFICATES = f"{PREFIX}/certificates"
_PAGE = 50
# A page of the API may be empty, although there are further certificates. So the console reads several pages of the API
# for each of its pages.
_READS = 5
_FILTERS = ("person", "cluster", "project", "domain", "state", "certificate")
_STATES: Mapping[str, str] = {
    "": "any",
    "live": "live",
    "ending": "live, ends within 24 hours",
    "revoked": "revoked",
    "accepted": "revoked, still accepted",
    "used": "used after the revocation",
    "used_today": "used after the revocation within a day",
    "expired": "expired",
}
# The formats of an export, which are also the endings of the names of files, with their media types.
_EXPORTS: Mapping[str, str] = {"csv": "text/csv; charset=utf-8", "jsonl": "application/jsonl"}
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_NAME = 120
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


class Fact(NamedTuple):
    """What is known of a certificate, for a badge.

    Attributes:
        kind: the kind of the badge.
        at: the time that belongs to the text; None without a time.
    """

    text: str
    kind: str
    at: str | None


def certificate_page(name: str) -> str:
    """Return the address of the page about a certificate. `name`: the fingerprint, or another name of the API."""
    return f"{CERTIFICATES}/{name}"


@pages.get("/certificates")
async def list_certificates(visit: Visit) -> Response:
    given = {name: visit.query.get(name, "").strip() for name in _FILTERS}
    chosen = {name: value for name, value in given.items() if value}
    values: dict[str, Any] = {
        "given": given,
        "states": _STATES,
        "is_filtered": bool(chosen),
        "sees_others": sees_others(visit.me.caller),
    }
    try:
        found, following = await _read(visit, *await _selection(visit, given), visit.query.get("cursor"))
    except (InvalidRequest, NotFound) as failure:
        return visit.render("certificates.html", failure=failure, certificates=(), **values)
    return visit.render(
        "certificates.html",
        certificates=[(each, facts(each)) for each in found],
        page_of=lambda each: certificate_page(each["fingerprint"]),
        cluster_of=lambda each: cluster_page(each["project_id"], each["cluster_id"]),
        person=_person,
        place=place_of,
        is_complete=following is None and "cursor" not in visit.query,
        next=with_query(CERTIFICATES, {**chosen, "cursor": following}) if following is not None else None,
        exports=[
            (name, with_query(f"{CERTIFICATES}/export", {**chosen, "format": name})) for name in _EXPORTS
        ],
        first=with_query(CERTIFICATES, chosen) if "cursor" in visit.query else None,
        **values,
    )


@pages.get("/certificates/export")
async def export(visit: Visit) -> Response:
    """Send all certificates of a list, newest first, as CSV or (`format=jsonl`) as JSON lines."""
    given = {name: visit.query.get(name, "").strip() for name in _FILTERS}
    target, parameters = await _selection(visit, given)
    format_ = visit.query.get("format", "csv")
    if format_ not in _EXPORTS:
        raise InvalidRequest(f"format: write {' or '.join(_EXPORTS)}.")
    parts = ["certificates", *(value for value in given.values() if value), f"{utc_now():%Y-%m-%d}"]
    name = "-".join(_NOT_IN_NAMES.sub("_", part) for part in parts)
    headers = {
        "Content-Disposition": f'attachment; filename="{name[:_MAX_NAME]}.{format_}"',
        "Cache-Control": "no-store",
    }
    first = await _export_page(visit, target, parameters, format_, None)
    return StreamingResponse(
        _exported(visit, target, parameters, format_, first), 200, headers, _EXPORTS[format_]
    )


async def _exported(
    visit: Visit, target: str, parameters: Mapping[str, str], format_: str, page: Answer
) -> AsyncIterator[bytes]:
    """Yield the pages of a list. A failure breaks the connection, so that the browser reports it."""
    yield page.body if format_ == "csv" else _lines(page)
    while (cursor := page.headers.get(NEXT.lower())) is not None:
        context_of(visit.request).extend_deadline()
        page = await _export_page(visit, target, parameters, format_, cursor)
        # Each page of CSV begins with the names of the columns.
        yield page.body.partition(b"\r\n")[2] if format_ == "csv" else _lines(page)


async def _export_page(
    visit: Visit, target: str, parameters: Mapping[str, str], format_: str, cursor: str | None
) -> Answer:
    query = {
        **parameters,
        "limit": MAX_PAGE,
        "cursor": cursor,
        "format": "csv" if format_ == "csv" else "json",
    }
    return await visit.api.send("GET", target, query)


def _lines(page: Answer) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in page.json["certificates"])


async def _selection(visit: Visit, given: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return the path and the parameters of the API's list. Raises InvalidRequest for an unknown or ambiguous name."""
    parameters = _of_state(given["state"])
    parameters |= {name: given[name] for name in ("domain", "certificate") if given[name]}
    if not sees_others(visit.me.caller):
        parameters["own"] = "true"
    # The certificates with which the service verifies clusters would hide the others.
    if not given["certificate"] and not given["person"]:
        parameters["without_own"] = "true"
    project_id = None
    if given["project"]:
        project_id = await project_named(visit, given["project"], await _projects(visit))
    cluster_id = None
    if given["cluster"]:
        project_id, cluster_id = await cluster_named(visit, given["cluster"], project_id)
    if given["person"]:
        if reads_everything(visit.me.caller) or is_long_id(given["person"]):
            parameters["user"] = await user_named(visit, given["person"], None)
        else:
            parameters["user_name"] = given["person"]
    if cluster_id is not None:
        parameters["cluster"] = cluster_id
    if project_id is not None:
        return path("projects", project_id, "certificates"), parameters
    return path("certificates"), parameters


async def _projects(visit: Visit) -> Mapping[str, str]:
    """Return the names of the visitor's projects by id."""
    caller = await visit.api.get(path("caller"))
    return {
        each["id"]: f"{each['domain']}/{each['name']}"
        for each in caller["projects"]
        if ADMIN in each["roles"] or reads_everything(visit.me.caller)
    }


def _of_state(state: str) -> dict[str, str]:
    """Return the query parameters of the API for a choice of `_STATES`. Raises InvalidRequest for another value."""
    now, day = utc_now(), timedelta(days=1)
    match state:
        case "":
            return {}
        case "ending":
            return {"state": "live", "expires_before": rfc3339(now + day)}
        case "accepted":
            return {"accepted": "true"}
        case "used":
            return {"revoked_use_after": rfc3339(_BEGINNING)}
        case "used_today":
            return {"revoked_use_after": rfc3339(now - day)}
        case "live" | "revoked" | "expired":
            return {"state": state}
    raise InvalidRequest(f"There is no state {state}. Choose one of the list.")


async def _read(
    visit: Visit, target: str, parameters: Mapping[str, str], cursor: str | None
) -> tuple[list[Any], str | None]:
    """Return certificates from several pages of the API, and the cursor of the next page."""
    found = list[Any]()
    for _ in range(_READS):
        page = await visit.api.get(target, limit=_PAGE - len(found), cursor=cursor, **parameters)
        found += page["certificates"]
        cursor = page["next"]
        if cursor is None or len(found) == _PAGE:
            break
    return found, cursor


def facts(certificate: Any) -> list[Fact]:
    """Return what is known of a certificate, from the API's list: its state, and what was seen after a revocation."""
    match certificate["state"]:
        case "live":
            return [Fact("live", "good", None)]
        case "expired":
            return [Fact("expired", "plain", certificate["not_after"])]
    seen = [Fact("revoked", "plain", certificate["revoked_at"])]
    if certificate["used_after_revocation_at"] is not None:
        seen.append(_refusal("used", certificate))
    if certificate["refused_at"] is not None:
        seen.append(_refusal("refused", certificate))
    return seen


def _refusal(state: RefusalState, certificate: Any) -> Fact:
    label, severity, time = REFUSAL_WORDS[state]
    return Fact(label, severity, certificate[time])


def _person(certificate: Any) -> str:
    """Return the user's name with the domain, or the id of a user without a known name."""
    return qualified_name(
        certificate["user_name"] or certificate["user_id"], certificate["user_domain"] or ""
    )


# How a revocation is named in a sentence, by what it covers.
_COVERS: Mapping[str, str] = {
    "certificate": "this certificate",
    "user_in_cluster": "all certificates of this person for this cluster",
    "user": "all certificates of this person in all clusters",
    "cluster": "all certificates of this cluster",
}


@pages.get("/certificates/{certificate}")
async def show(visit: Visit) -> Response:
    found = await _found(visit)
    place = cluster_page(found["project_id"], found["cluster_id"])
    is_admin = administers(visit.me.caller, found["project_id"])
    is_owner = found["user_id"] == visit.me.caller.user.id
    return visit.render(
        "certificate.html",
        certificate=found,
        person=_person(found),
        place=place_of(found),
        cluster=place if found["cluster_name"] is not None else None,
        facts=_whole_facts(found),
        end=_end(found),
        revocations=[
            (each, _COVERS[each["covers"]], f"{visit.request.url.path}/undo/{each['id']}")
            for each in found["revocations"]
        ],
        is_operator=visit.is_operator,
        revoke=f"{place}/certificates/{found['fingerprint']}/revoke"
        if found["state"] == "live" and found["cluster_name"] is not None and (is_admin or is_owner)
        else None,
        events=_events(visit, found),
        others=with_query(CERTIFICATES, {"person": found["user_id"]}),
    )


async def _found(visit: Visit) -> Any:
    """Return the certificate in the path. Raises NotFound if the visitor may see no such certificate."""
    return await visit.api.get(path("certificates", visit.part("certificate")))


def _whole_facts(certificate: Any) -> list[Fact]:
    """Return what is known of one certificate; also whether its refusal is expected."""
    refusal = certificate["refusal"]
    if refusal is None:
        return facts(certificate)
    return [
        Fact("revoked", "plain", certificate["revoked_at"]),
        _refusal(refusal, certificate),
    ]


def _end(certificate: Any) -> str | None:
    """Return a sentence that says how a revocation of a live certificate would end it; None for other certificates."""
    if certificate["state"] != "live" or certificate["ends_by"] is None:
        return None
    seconds = certificate["within_seconds"]
    match certificate["refuses"]:
        case "writes":
            return f"{seconds} s after a revocation, the API server should refuse writes. It accepts reads."
        case "none" if certificate["ends_by"] == "ca":
            return "Only the replacement of the client CA ends it before it expires."
        case "none":
            return "No control is known to end it before it expires."
    return f"{seconds} s after a revocation, the API server should refuse it ({certificate['ends_by']})."


def _events(visit: Visit, certificate: Any) -> str | None:
    """Return the address of the events of a certificate; None if the visitor may not see them."""
    if reads_everything(visit.me.caller):
        return with_query(f"{PREFIX}/audit", {"object": certificate["fingerprint"]})
    if administers(visit.me.caller, certificate["project_id"]):
        query = {"project": certificate["project_id"], "object": certificate["fingerprint"]}
        return with_query(f"{PREFIX}/audit", query)
    return None


@pages.get("/certificates/{certificate}/undo/{revocation}", fresh=lambda visit: visit.address_for_operators)
async def ask_to_undo(visit: Visit) -> Response:
    return await _confirmation(visit)


@pages.post("/certificates/{certificate}/undo/{revocation}", fresh=lambda visit: visit.address)
async def undo(visit: Visit) -> Response:
    found = await _found(visit)
    revocation = _covering(visit, found)
    name = _to_type(found, revocation)
    if visit.value("name") != name:
        failure = InvalidRequest(f"Type {name} to confirm.")
        return await _confirmation(visit, failure)
    try:
        await visit.api.post(path("revocations", str(revocation["id"]), "undo"))
    except ClustercertError as failure:
        raise_fault(failure)
        return await _confirmation(visit, failure)
    rest = len(found["revocations"]) - 1
    kept = " Another revocation still covers this certificate." if rest else ""
    notice = f"The revocation of {_COVERS[revocation['covers']]} is undone.{kept}"
    return visit.redirect(certificate_page(found["fingerprint"]), notice)


async def _confirmation(visit: Visit, failure: ClustercertError | None = None) -> Response:
    """Return the page that says what undoing a revocation does. `failure`: why the API refused to undo it."""
    found = await _found(visit)
    revocation = _covering(visit, found)
    return visit.render(
        "certificate_undo.html",
        failure=failure,
        certificate=found,
        home=certificate_page(found["fingerprint"]),
        person=_person(found),
        place=place_of(found),
        revocation=revocation,
        covers=_COVERS[revocation["covers"]],
        effect=_undone(revocation),
        others=len(found["revocations"]) - 1,
        name=_to_type(found, revocation),
        is_operator=visit.is_operator,
        typed=visit.form,
    )


def _covering(visit: Visit, certificate: Any) -> Any:
    """Return the revocation in the path. Raises NotFound unless it covers the certificate."""
    for each in certificate["revocations"]:
        if str(each["id"]) == visit.part("revocation"):
            return each
    raise NotFound("This revocation does not cover this certificate, or it was undone.")


def _undone(revocation: Any) -> str:
    """Return a sentence that says what undoing a revocation does."""
    if revocation["covers"] == "certificate":
        return "The certificate gives access again until it expires."
    return (
        f"Give access again until they expire: {_COVERS[revocation['covers']]} that were issued before the revocation,"
        " unless another revocation covers them."
    )


def _to_type(certificate: Any, revocation: Any) -> str:
    """Return what to type to confirm: the name of the cluster, or of the person, whose certificates become valid."""
    if revocation["covers"] == "cluster":
        return str(certificate["cluster_name"] or certificate["cluster_id"])
    return str(certificate["user_name"] or certificate["user_id"])
