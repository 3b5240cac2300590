"""Explains which certificate the policy gives a user for a cluster, and who else could get a Kubernetes group."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from clustercert.http.console.api import path
from clustercert.http.console.cluster_address import CLUSTER, cluster_in_path
from clustercert.http.console.visits import Pages, Visit, raise_fault
from clustercert.model import parse_rfc3339
from clustercert.model.credentials import CREDENTIAL_PREFIX
from clustercert.model.errors import ClustercertError, NotFound
from clustercert.model.ids import is_user_id
from clustercert.model.rights import reads_everything, reads_project
from clustercert.policy.lifetime import BACKDATE

# Who makes the private key of the explained request. kubectl's plugin sends a CSR.
KEYS = {"plugin": "of kubectl's plugin", "service": "of the service"}
_FIELDS = ("user", "reason", "expires_in", "key", "group")

pages = Pages()


@pages.get(f"{CLUSTER}/why")
async def why(visit: Visit) -> Response:
    cluster = await cluster_in_path(visit)
    caller = visit.me.caller
    may_ask_about_others = reads_project(caller, cluster["project_id"])
    form = {name: visit.query.get(name, "").strip() for name in _FIELDS}
    if not may_ask_about_others:
        form["user"] = ""
    values: dict[str, Any] = {"candidates": (), "found": None, "entitled": None}
    problem = None
    try:
        is_csr = form["key"] != "service" and cluster["credential"] == "certificate"
        values |= await _explained(visit, form, is_csr=is_csr)
        if form["group"] and reads_everything(caller):
            cursor = visit.query.get("cursor")
            values["entitled"] = await visit.api.get(
                path("policy", "entitlements"), cluster=cluster["id"], group=form["group"], cursor=cursor
            )
    except ClustercertError as failure:
        raise_fault(failure)
        problem = failure
    return visit.render(
        "why.html",
        failure=problem,
        cluster=cluster,
        form=form,
        same=urlencode({name: value for name, value in form.items() if value}),
        keys=KEYS,
        may_ask_about_others=may_ask_about_others,
        is_reader=reads_everything(caller),
        **values,
    )


async def _explained(visit: Visit, form: Mapping[str, str], *, is_csr: bool) -> dict[str, object]:
    """Return the explanation and its lifetime, or the candidates if several users have the name in the form."""
    user = None
    if form["user"]:
        users = await _users(visit, form["user"])
        if len(users) > 1:
            return {"candidates": users}
        user = users[0]["id"]
    found = await visit.api.get(
        path("policy", "explain"),
        cluster=visit.part("cluster_id"),
        user=user,
        csr="true" if is_csr else "false",
        reason=form["reason"] or None,
        expires_in=form["expires_in"] or None,
    )
    return {"found": found, "lifetime": _lifetime(found), "groups": _groups(found)}


async def _users(visit: Visit, name: str) -> list[Mapping[str, Any]]:
    """Return the users with this name or id whom the visitor may find. Raises NotFound if there are no such users."""
    if is_user_id(name):
        return [{"id": name}]
    sees_all = reads_everything(visit.me.caller)
    place = ("projects", visit.part("project_id"), "clusters", visit.part("cluster_id"))
    found = await visit.api.get(path(*(() if sees_all else place), "users-by-name"), name=name)
    users: list[Mapping[str, Any]] = found["users"]
    if not users:
        raise NotFound(
            f"There is no user {name}. Write users of an issuer with its name, such as sso/anna. Such users"
            " are known after their first login."
            if sees_all
            else f"No unexpired certificate for this cluster belongs to a user {name}. Write the user's id instead."
        )
    return users


def _groups(found: Mapping[str, Any]) -> list[str]:
    """Return the groups of the certificate that would be signed, without its credential group."""
    signed = found["would_sign"]
    if signed is None:
        return []
    return [each for each in signed["organizations"] if not each.startswith(CREDENTIAL_PREFIX)]


def _lifetime(found: Mapping[str, Any]) -> timedelta | None:
    signed = found["would_sign"]
    if signed is None:
        return None
    return parse_rfc3339(signed["not_after"]) - parse_rfc3339(signed["not_before"]) - BACKDATE
