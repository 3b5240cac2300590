"""The visitor's own certificates, sessions, access keys and password."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from clustercert.http.console.api import path
from clustercert.http.console.cluster_address import place_of
from clustercert.http.console.rendering import absolute
from clustercert.http.console.visits import LOGIN, PREFIX, Pages, Visit, end_session_cookie, with_query
from clustercert.model.choices import RevocationReason
from clustercert.model.errors import ClustercertError, NotFound, Unauthenticated
from clustercert.model.identity import BUILT_IN, MIN_PASSWORD_CHARACTERS

ACCOUNT = f"{PREFIX}/account"
_CERTIFICATES = f"{ACCOUNT}#certificates"
_PAGE = 50
_NAMED = 5
# The maximum number of keys of each kind that the page shows. A user can have thousands of temporary keys.
_PERMANENT_KEYS, _TEMPORARY_KEYS = 500, 20
# The reasons from which a person who revokes their own certificates can choose.
REASONS: Mapping[RevocationReason, str] = {
    "cessationOfOperation": "Not needed any more",
    "keyCompromise": "Somebody else may have the private key (nobody can undo this)",
    "unspecified": "Another reason",
}

pages = Pages()


@pages.get("/account")
async def account(visit: Visit) -> Response:
    shows_all, cursor = visit.query.get("show") == "all", visit.query.get("cursor")
    query = {name: visit.query[name] for name in ("cluster", "show") if name in visit.query}
    certificates = await visit.api.get(
        path("certificates"),
        own="true",
        state=None if shows_all else "live",
        cluster=visit.query.get("cluster"),
        limit=_PAGE,
        cursor=cursor,
    )
    following = certificates["next"]
    is_built_in = visit.me.caller.issuer == BUILT_IN
    sessions = await visit.api.get(path("caller", "sessions"))
    return visit.render(
        "account.html",
        certificates=certificates["certificates"],
        place=place_of,
        shows_all=shows_all,
        cluster=visit.query.get("cluster"),
        first=_address(query) if cursor is not None else None,
        next=_address(query | {"cursor": following}) if following is not None else None,
        sessions=sessions["sessions"],
        keys=await _keys(visit) if is_built_in else None,
        is_built_in=is_built_in,
    )


@pages.get("/account/certificates/{fingerprint}/revoke")
async def confirm_revocation(visit: Visit) -> Response:
    certificate = await visit.api.get(path("certificates", visit.part("fingerprint")))
    return visit.render(
        "account_revoke.html", certificate=certificate, place=place_of(certificate), reasons=REASONS
    )


@pages.post("/account/certificates/{fingerprint}/revoke")
async def revoke(visit: Visit) -> Response:
    target = path("certificates", visit.part("fingerprint"), "revoke")
    revoked = await visit.api.post(target, {"reason": _reason(visit)})
    return visit.redirect(_CERTIFICATES, f"The certificate is revoked. {_effect(revoked)}")


@pages.get("/account/certificates/revoke")
async def confirm_revocation_of_all(visit: Visit) -> Response:
    preview = await visit.api.post(path("users", visit.me.caller.user.id, "revoke"), dryRun="All")
    return visit.render("account_revoke_all.html", count=preview["live"], reasons=REASONS)


@pages.post("/account/certificates/revoke")
async def revoke_all(visit: Visit) -> Response:
    await visit.api.post(path("users", visit.me.caller.user.id, "revoke"), {"reason": _reason(visit)})
    return visit.redirect(
        _CERTIFICATES,
        "All your certificates are revoked. Clusters without a fast control accept them until they expire.",
    )


@pages.post("/account/sessions/{session_id}/end")
async def end_session(visit: Visit) -> Response:
    session_id = visit.part("session_id")
    await visit.api.send("DELETE", path("caller", "sessions", session_id))
    if visit.me.session.id.startswith(session_id):
        return _logged_out(visit, "You are logged out.")
    return visit.redirect(f"{ACCOUNT}#sessions", "The session has ended.")


@pages.post("/account/sessions/end-others")
async def end_other_sessions(visit: Visit) -> Response:
    found = await visit.api.get(path("caller", "sessions"))
    others = [each["id"] for each in found["sessions"] if not each["current"]]
    for session_id in others:
        # A session that ended meanwhile must not keep the other sessions open.
        with contextlib.suppress(NotFound):
            await visit.api.send("DELETE", path("caller", "sessions", session_id))
    ended = "1 other session has" if len(others) == 1 else f"{len(others)} other sessions have"
    return visit.redirect(f"{ACCOUNT}#sessions", f"{ended} ended.")


@pages.get("/account/keys/{access_key}/delete")
async def confirm_deletion_of_key(visit: Visit) -> Response:
    for key in (await _keys(visit)).shown:
        if key["access_key"] == visit.part("access_key"):
            return visit.render("account_delete_key.html", key=key)
    raise NotFound(f"You have no such access key. {ACCOUNT} lists your access keys.")


@pages.post("/account/keys/{access_key}/delete")
async def delete_key(visit: Visit) -> Response:
    await visit.api.send("DELETE", path("caller", "access-keys", visit.part("access_key")))
    return visit.redirect(f"{ACCOUNT}#keys", f"The access key {visit.part('access_key')} is deleted.")


@pages.get("/account/password")
async def ask_for_password(visit: Visit) -> Response:
    return _password_page(visit)


# Three passwords of at most 1,024 characters.
@pages.post("/account/password", limit=32 * 1024)
async def change_password(visit: Visit) -> Response:
    old, new = visit.form.get("old", ""), visit.form.get("new", "")
    if new != visit.form.get("repeated", ""):
        return _password_page(
            visit, "The new passwords differ. Write the same password twice.", HTTPStatus.BAD_REQUEST
        )
    visit.show_on_failure(lambda failure: _password_page(visit, _password_problem(failure), failure.status))
    body = {"user": {"original_password": old, "password": new}}
    await visit.api.send("POST", f"/v3/users/{visit.me.caller.user.id}/password", body=body)
    return visit.redirect(ACCOUNT, "The password is changed. All your other logins have ended.")


@pages.get("/account/log-out-everywhere")
async def confirm_logout_everywhere(visit: Visit) -> Response:
    preview = await visit.api.post(path("caller", "logout"), dryRun="All")
    return visit.render("account_logout.html", preview=preview)


@pages.post("/account/log-out-everywhere")
async def log_out_everywhere(visit: Visit) -> Response:
    ended = await visit.api.post(path("caller", "logout"), {"keys": visit.value("keys") == "true"})
    sentences = ["You are logged out everywhere, and your certificates are revoked."]
    if slow := [each["name"] for each in ended["clusters"] if each["refuses"] == "none"]:
        names = ", ".join(slow[:_NAMED]) + (" and more" if len(slow) > _NAMED else "")
        sentences.append(f"It is not known that these clusters refuse your certificates: {names}.")
    if kept := [each["access_key"] for each in ended["kept_keys"]]:
        sentences.append(f"These access keys still work: {', '.join(kept[:_NAMED])}.")
    return _logged_out(visit, " ".join(sentences))


@dataclass(frozen=True, slots=True)
class _Keys:
    """Access keys, the permanent ones first, oldest first. `are_all`: whether the user has no other keys."""

    shown: list[Mapping[str, Any]]
    are_all: bool


async def _keys(visit: Visit) -> _Keys:
    shown, are_all = list[Mapping[str, Any]](), True
    for temporary, limit in (("false", _PERMANENT_KEYS), ("true", _TEMPORARY_KEYS)):
        page = await visit.api.get(path("caller", "access-keys"), temporary=temporary, limit=limit)
        shown += sorted(page["access_keys"], key=lambda each: str(each["created_at"]))
        are_all = are_all and page["next"] is None
    return _Keys(shown, are_all)


def _logged_out(visit: Visit, notice: str) -> Response:
    response = visit.redirect(LOGIN, notice)
    end_session_cookie(response)
    return response


def _reason(visit: Visit) -> str:
    chosen = visit.value("reason")
    return chosen if chosen in REASONS else "unspecified"


def _effect(revoked: Mapping[str, Any]) -> str:
    """Return a sentence that says by when the cluster should refuse a revoked certificate."""
    if revoked["refuses"] is None:
        return "The cluster was removed from this service."
    if revoked["refuses"] == "none":
        return (
            "No refusal is expected: the cluster may accept this certificate until the certificate expires."
        )
    what = "this certificate" if revoked["refuses"] != "writes" else "writes with this certificate"
    return f"The cluster should refuse {what} by {absolute(revoked['expected_by'])}."


def _password_page(visit: Visit, message: str = "", status: int = HTTPStatus.OK) -> Response:
    return visit.render(
        "account_password.html",
        status=status,
        message=message,
        is_built_in=visit.me.caller.issuer == BUILT_IN,
        issuer=visit.me.caller.issuer,
        least=MIN_PASSWORD_CHARACTERS,
    )


def _password_problem(failure: ClustercertError) -> str:
    if isinstance(failure, Unauthenticated):
        return "The old password is wrong. The password was not changed."
    return failure.message


def _address(query: Mapping[str, str]) -> str:
    return with_query(ACCOUNT, query) + "#certificates"
