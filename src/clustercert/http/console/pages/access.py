"""Who has access to a cluster, and the pages that confirm a revocation."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from starlette.responses import Response

from clustercert.certificates.recorder import MAX_NOTE
from clustercert.http.console.cluster_address import (
    CLUSTER,
    api_path,
    cluster_in_path,
    command_name,
    own_page,
)
from clustercert.http.console.visits import Pages, Visit, raise_fault, with_query
from clustercert.model import JsonObject
from clustercert.model.choices import RevocationReason
from clustercert.model.enforcement import ENFORCEMENT_WORDS
from clustercert.model.errors import ClustercertError, InvalidRequest, NotFound
from clustercert.model.identity import qualified_name
from clustercert.model.kubernetes import AUTHENTICATED, MASTERS
from clustercert.model.refusals import REFUSAL_WORDS
from clustercert.model.rights import administers, reads_project

pages = Pages()

_USERS = 50
# The number of certificates that the page shows of each user, unless the page is about one user.
_OF_EACH_USER = 3
_OF_ONE_USER = 100
_UNKNOWN = 50
_GROUPS = 50
# The filters of the list of users.
_FILTERS = ("search", "group", "user")
_REASONS: Mapping[str, str] = {
    "unspecified": "No particular reason",
    "affiliationChanged": "The person left, or has another task",
    "superseded": "Replaced by another certificate",
    "cessationOfOperation": "Not needed any more",
    "keyCompromise": "The private key was stolen or lost (can't be undone)",
}


@pages.get(CLUSTER)
async def show(visit: Visit) -> Response:
    cluster = await cluster_in_path(visit)
    given = {name: visit.query[name].strip() for name in _FILTERS if visit.query.get(name, "").strip()}
    values: dict[str, Any] = {
        "cluster": cluster,
        "home": own_page(visit),
        "may_revoke": administers(visit.me.caller, cluster["project_id"]),
        "given": given,
    }
    # The API would record a refused request.
    if not reads_project(visit.me.caller, cluster["project_id"]):
        own = await visit.api.get(api_path(visit, "certificates"), own="true", state="live")
        return visit.render("access_own.html", certificates=own["certificates"], **values)
    report = await visit.api.get(
        api_path(visit, "access"), **given, limit=_USERS, cursor=visit.query.get("cursor")
    )
    values |= _shown(visit, report, given) | {"commands": _commands(cluster)}
    return visit.render("access.html", **values)


def _shown(visit: Visit, report: Any, given: Mapping[str, str]) -> JsonObject:
    """Return the values that the page shows of a report."""
    most = _OF_ONE_USER if "user" in given else _OF_EACH_USER
    first = with_query(own_page(visit), given)
    following = with_query(own_page(visit), {**given, "cursor": str(report["next"])})
    groups = sorted(report["groups"], key=lambda each: (-each["credentials"], each["name"]))
    return {
        "report": report,
        "enforcement": ENFORCEMENT_WORDS[report["enforcement"]],
        "missing": [each for each in report["controls"] if not each["set_up"]],
        "ends": _ends,
        "most": most,
        "authenticated": AUTHENTICATED,
        "unknown": report["unknown_credentials"][:_UNKNOWN],
        "groups": [each for each in groups if each["name"] != AUTHENTICATED][:_GROUPS],
        "masters": _group(report, MASTERS),
        "first": first if "cursor" in visit.query else None,
        "following": following if report["next"] is not None else None,
    }


def _commands(cluster: Mapping[str, Any]) -> dict[str, str]:
    """Return the commands about a cluster that the page shows."""
    name = command_name(cluster)
    return {
        "setup": shlex.join(["clustercert", "kubernetes", "setup", name, "--out", "control-plane"]),
        "verify": shlex.join(["clustercert", "kubernetes", "verify", name]),
        "merge": shlex.join(["clustercert", "kubeconfig", "merge", name]),
        "access": shlex.join(["clustercert", "certificate", "access", "--cluster", name]),
    }


def _group(report: Any, name: str) -> Any | None:
    """Return a group of the report, or None if nobody has access through it."""
    return next((each for each in report["groups"] if each["name"] == name), None)


class _End(NamedTuple):
    """How a certificate ends, or whether its refusal was seen, for a table cell.

    Attributes:
        kind: the kind of a badge, or `warn` for text in a warning color; empty for plain text.
        at: the time that belongs to the text; None without a time.
    """

    text: str
    kind: str = ""
    at: str | None = None


def _ends(credential: Any) -> _End:
    """Return how a live certificate of the report ends, or whether the refusal of a revoked certificate was seen."""
    if (refusal := credential["refusal"]) is not None:
        label, severity, time = REFUSAL_WORDS[refusal]
        return _End(label, severity, credential[time])
    if credential["refuses"] != "none":
        only = ", only writes" if credential["refuses"] == "writes" else ""
        return _End(f"{credential['ends_by']}, {credential['within_seconds']} s{only}")
    return _End("only with the CA" if credential["ends_by"] == "ca" else "when it expires", "warn")


@dataclass(frozen=True, slots=True)
class _Target:
    """What a revocation revokes.

    Attributes:
        parts: the end of the address, in the API and in the console.
        user_id: the user whose certificates are revoked; None for all users.
        live: how many certificates are valid and unrevoked now.
        certificate: the only certificate, or None.
    """

    parts: tuple[str, ...]
    user_id: str | None
    user: str | None
    live: int
    certificate: Any | None = None


async def _one(visit: Visit) -> _Target:
    found = await visit.api.get(api_path(visit, "certificates", visit.part("certificate")))
    parts = ("certificates", found["fingerprint"])
    live = int(found["state"] == "live")
    return _Target(parts, found["user_id"], _name(found), live, found)


async def _person(visit: Visit) -> _Target:
    parts = ("users", visit.part("user_id"))
    preview = await visit.api.post(api_path(visit, *parts, "revoke"), dryRun="All")
    return _Target(parts, preview["user_id"], _name(preview), preview["live"])


async def _everybody(visit: Visit) -> _Target:
    preview = await visit.api.post(api_path(visit, "revoke"), dryRun="All")
    return _Target((), None, None, preview["live"])


def _name(user: Any) -> str:
    """Return the user's name with the domain, or the id of a user without a known name."""
    return qualified_name(user["user_name"] or user["user_id"], user["user_domain"] or "")


async def _confirmation(visit: Visit, target: _Target, failure: ClustercertError | None = None) -> Response:
    """Return the page that shows what a revocation ends, how fast, and what remains.

    `failure`: why the API refused the revocation.
    """
    cluster = await cluster_in_path(visit)
    report = None
    # Other visitors may revoke their own certificates, but not see the report. The API would record a refused request.
    if reads_project(visit.me.caller, cluster["project_id"]):
        report = await visit.api.get(api_path(visit, "access"), user=target.user_id, limit=1)
    certificate, others = None, 0
    if report is not None and target.certificate is not None:
        reported = [each for user in report["users"] for each in user["credentials"]]
        fingerprint = target.certificate["fingerprint"]
        certificate = next((each for each in reported if each["fingerprint"] == fingerprint), None)
        counts = report["totals"]
        others = counts["certificates"] - counts["revoked"] - target.live
    return visit.render(
        "revoke.html",
        failure=failure,
        cluster=cluster,
        home=own_page(visit),
        target=target,
        may_revoke=administers(visit.me.caller, cluster["project_id"])
        or target.user_id == visit.me.caller.user.id,
        others=others,
        report=report,
        enforcement=ENFORCEMENT_WORDS[report["enforcement"]] if report is not None else None,
        controls=_stopping(report, certificate) if report is not None else (),
        refuses=(certificate or report or {}).get("refuses"),
        masters=_group(report, MASTERS) if report is not None else None,
        with_access=sum(each["has_access"] for each in report["unknown_credentials"]) if report else 0,
        reasons={name: _REASONS[name] for name in get_args(RevocationReason)},
        most_note=MAX_NOTE,
        typed=visit.form,
    )


def _stopping(report: Any, certificate: Any | None) -> list[Any]:
    """Return the fast controls that stop the certificate, or the certificates of all users."""
    names = [
        each for each in report["enforced_by"] if certificate is None or each in certificate["stopped_by"]
    ]
    return [each for each in report["controls"] if each["name"] in names]


def _to_repeat(visit: Visit) -> str | None:
    """Return the page of a revocation for people who may revoke certificates of others.

    People without this right can revoke only their own certificates, which needs no new login.
    """
    return visit.address if administers(visit.me.caller, visit.part("project_id")) else None


@pages.get(f"{CLUSTER}/certificates/{{certificate}}/revoke", fresh=_to_repeat)
async def ask_to_revoke_one(visit: Visit) -> Response:
    return await _confirmation(visit, await _one(visit))


@pages.post(f"{CLUSTER}/certificates/{{certificate}}/revoke", fresh=_to_repeat)
async def revoke_one(visit: Visit) -> Response:
    return await _revoke(visit, await _one(visit))


@pages.get(f"{CLUSTER}/users/{{user_id}}/revoke", fresh=_to_repeat)
async def ask_to_revoke_person(visit: Visit) -> Response:
    return await _confirmation(visit, await _person(visit))


@pages.post(f"{CLUSTER}/users/{{user_id}}/revoke", fresh=_to_repeat)
async def revoke_person(visit: Visit) -> Response:
    return await _revoke(visit, await _person(visit))


@pages.get(f"{CLUSTER}/revoke", fresh=_to_repeat)
async def ask_to_revoke_all(visit: Visit) -> Response:
    return await _confirmation(visit, await _everybody(visit))


@pages.post(f"{CLUSTER}/revoke", fresh=_to_repeat)
async def revoke_all(visit: Visit) -> Response:
    target, cluster = await _everybody(visit), await cluster_in_path(visit)
    if visit.value("cluster") != cluster["name"]:
        failure = InvalidRequest(f"The name of this cluster is {cluster['name']}. Type this name to confirm.")
        return await _confirmation(visit, target, failure)
    return await _revoke(visit, target)


async def _revoke(visit: Visit, target: _Target) -> Response:
    """Revoke, and show the cluster again. If the API refuses, show the confirmation again, with the reason."""
    body = {"reason": visit.value("reason") or "unspecified", "note": visit.value("note") or None}
    try:
        revoked = await visit.api.post(api_path(visit, *target.parts, "revoke"), body)
    except NotFound:
        raise
    except ClustercertError as failure:
        raise_fault(failure)
        return await _confirmation(visit, target, failure)
    page = with_query(own_page(visit), {"user": target.user_id} if target.user_id else {})
    return visit.redirect(page, _result(target, revoked))


def _result(target: _Target, revoked: Any) -> str:
    """Return the sentences that say what a revocation did, and when the API server refuses."""
    whose = f" of {target.user}" if target.user is not None else ""
    count = "1 certificate" if target.live == 1 else f"{target.live} certificates"
    what = f"Revoked {'the certificate' if target.certificate else count}"
    at, enforced_by = _utc(revoked["at"]), revoked["enforced_by"]
    undo = (
        f" An operator can undo the revocation with clustercert certificate undo {revoked['id']}."
        if revoked["can_be_undone"]
        else ""
    )
    them, until = ("it", "it expires") if target.live == 1 else ("the certificates", "they expire")
    by = _utc(revoked["expected_by"])
    if revoked["refuses"] in ("all", "bound"):
        effect = f"Refusal expected by {by} ({enforced_by[0]}). This page says when a refusal was seen."
    elif revoked["refuses"] == "writes":
        effect = f"Refusal of writes expected by {by}. The API server accepts reads until {until}."
    elif revoked["enforcement"] == "quiet" and revoked["lacking"] is None:
        effect = "It is not known whether the API server refuses it: the cluster is quiet."
    else:
        effect = f"No control enforces it: the API server accepts {them} until {until}."
    return f"{what}{whose} at {at}. {effect}{undo}"


def _utc(time: str | None) -> str:
    """Return a time of the API for a sentence."""
    return (time or "").replace("T", " ").replace("Z", " UTC")
