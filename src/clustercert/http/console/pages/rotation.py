"""The rotation of a cluster's client CA: its state, who holds the old CA, and what operators can do."""

from typing import Any

from starlette.responses import Response

from clustercert.http.console.cluster_address import CLUSTER, api_path, cluster_in_path, own_page
from clustercert.http.console.visits import Pages, Visit, raise_fault
from clustercert.model import JsonObject, parse_rfc3339, utc_now
from clustercert.model.errors import ClustercertError, Conflict, NotFound

pages = Pages()

_ROTATION = f"{CLUSTER}/rotation"
_STATES = ("planned", "distributed", "issuing", "draining", "complete")
# What each state means, after its name.
_MEANINGS = {
    "planned": "the API servers get the new CA",
    "distributed": "all API servers accept the new CA",
    "issuing": "the new CA signs",
    "draining": "certificates of the old CA expire",
    "complete": "all API servers refuse the old CA",
}
_ENDED = ("complete", "aborted")


def _address(visit: Visit) -> str:
    return f"{own_page(visit)}/rotation"


def _rotation_api(visit: Visit, *more: str) -> str:
    return api_path(visit, "client-ca-rotation", *more)


@pages.get(_ROTATION)
async def show(visit: Visit) -> Response:
    cluster = await visit.api.get(api_path(visit))
    # A cluster whose credentials are tokens has no client CA, and no rotations.
    rotation = await _rotation(visit) if cluster["client_ca"] is not None else None
    return visit.render(
        "rotation.html",
        live=True,
        home=_address(visit),
        cluster=cluster,
        place=await cluster_in_path(visit),
        rotation=rotation,
        states=[(state, _MEANINGS[state]) for state in _STATES],
        reached=_STATES.index(rotation["state"]) if rotation and rotation["state"] in _STATES else None,
        counts=_counts(rotation) if rotation is not None else {},
        is_running=rotation is not None and rotation["state"] not in _ENDED,
        is_safe=_is_safe(rotation),
        is_operator=visit.is_operator,
    )


def _is_safe(rotation: Any | None) -> bool:
    """Whether completing would take access from nobody now."""
    return (
        rotation is not None
        and rotation["safe_at"] is not None
        and parse_rfc3339(rotation["safe_at"]) <= utc_now()
    )


async def _rotation(visit: Visit) -> Any | None:
    """Return the running rotation, or the last one if none is running. None if the CA was never replaced."""
    try:
        return await visit.api.get(_rotation_api(visit))
    except NotFound:
        return None


def _counts(rotation: Any) -> dict[str, int]:
    servers = rotation["api_servers"]
    return {
        "servers": len(servers),
        "accepting": sum(each["new_ca"] == "accepted" for each in servers),
        "refusing": sum(each["old_ca"] == "refused" for each in servers),
    }


@pages.get(f"{_ROTATION}/start", fresh=lambda visit: visit.address_for_operators)
async def ask_to_start(visit: Visit) -> Response:
    return await _confirmation(visit, "start", {})


@pages.post(f"{_ROTATION}/start", fresh=lambda visit: visit.address)
async def start(visit: Visit) -> Response:
    body: JsonObject = {
        "signer": visit.value("signer") or None,
        "auto_complete": "auto_complete" in visit.form,
        "deny_old": "deny_old" in visit.form,
    }
    return await _done(visit, "start", body, "The rotation was started.")


@pages.get(f"{_ROTATION}/complete", fresh=lambda visit: visit.address_for_operators)
async def ask_to_complete(visit: Visit) -> Response:
    return await _confirmation(visit, "complete", {})


@pages.post(f"{_ROTATION}/complete", fresh=lambda visit: visit.address)
async def complete(visit: Visit) -> Response:
    body: JsonObject = {"deny_old": "deny_old" in visit.form}
    if visit.value("holders"):
        number = visit.number("holders")
        # The API refuses -1 with a message about the field.
        body |= {"force": True, "holders": number if number is not None else -1}
    done = "The old CA was taken out of the bundle. Now give the API servers the new bundle."
    return await _done(visit, "complete", body, done)


@pages.get(f"{_ROTATION}/abort", fresh=lambda visit: visit.address_for_operators)
async def ask_to_abort(visit: Visit) -> Response:
    return await _confirmation(visit, "abort", None)


@pages.post(f"{_ROTATION}/abort", fresh=lambda visit: visit.address)
async def abort(visit: Visit) -> Response:
    return await _done(visit, "abort", None, "The rotation was aborted.")


def _target(visit: Visit, action: str) -> str:
    return _rotation_api(visit) if action == "start" else _rotation_api(visit, action)


async def _confirmation(
    visit: Visit, action: str, body: JsonObject | None, failure: ClustercertError | None = None
) -> Response:
    """Return the page that asks for a confirmation, with a dry run of the action.

    Args:
        body: the body of the dry run.
        failure: why the API refused the action itself.
    """
    cluster = await visit.api.get(api_path(visit))
    rotation = await _rotation(visit)
    planned, obstacle = None, None
    try:
        planned = await visit.api.post(_target(visit, action), body, dryRun="All")
    except Conflict as conflict:
        obstacle = conflict.message
    counted = (rotation or {}).get("old_ca_holders", {}).get("certificates", 0)
    return visit.render(
        "rotation_confirm.html",
        failure=failure,
        home=_address(visit),
        action=action,
        cluster=cluster,
        place=await cluster_in_path(visit),
        rotation=rotation,
        planned=planned,
        obstacle=obstacle,
        # Completing in spite of valid certificates is possible, but their number has to be typed in.
        needs_count=action == "complete" and planned is None and bool(counted),
        typed=visit.form,
    )


async def _done(visit: Visit, action: str, body: JsonObject | None, notice: str) -> Response:
    """Carry out an action. If the API refuses the action, show its confirmation again, with the message."""
    try:
        await visit.api.post(_target(visit, action), body)
    except NotFound:
        raise
    except ClustercertError as failure:
        raise_fault(failure)
        return await _confirmation(visit, action, None if action == "abort" else {}, failure)
    return visit.redirect(_address(visit), notice)
