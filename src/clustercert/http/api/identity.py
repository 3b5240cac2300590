"""Routes about the caller, OIDC issuers and their users: login, explanation of a token, blocking."""

import asyncio
from datetime import timedelta
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import Response

from clustercert.authn.federated import CLOCK_DIFFERENCE
from clustercert.http import query, responses
from clustercert.http.api import OWN
from clustercert.http.api import identity_bodies as bodies
from clustercert.http.body import parsed, require_json
from clustercert.http.dependencies import Anonymous, CallDep, ServicesDep
from clustercert.http.openapi import ERRORS, PUBLIC_ERRORS, described, json_body
from clustercert.identity.names import report_on_token
from clustercert.model.errors import InvalidRequest
from clustercert.model.identity import BUILT_IN
from clustercert.pki.certificates import chain_pem, parse_certificates
from clustercert.policy.rules import require_operator

_PUBLIC = {status: text for status, text in PUBLIC_ERRORS.items() if status in (429, 500, 503)}
_CONFLICT = ERRORS | {409: "The user is blocked already, or was changed at the same time."}

_LOGOUT_ERRORS = ERRORS | {409: "Another request changed the user at the same time."}
_SECOND = timedelta(seconds=1)
_DRY_RUN = query.choice("dryRun", "All: end nothing, and return what would end.", ("All",))

router = APIRouter(tags=["Identity providers"])


@router.get(
    OWN + "/issuers",
    responses=described("The issuers.", bodies.IssuersBody, errors=_PUBLIC),
    dependencies=[Anonymous],
)
async def list_issuers(services: ServicesDep) -> Response:
    """List the OIDC issuers at which people log in.

    Needs no authentication. Contains the public OAuth client of each issuer, and the CAs of the issuer's server.
    """
    issuers = services.oidc.issuers if services.oidc is not None else ()
    found = [
        bodies.issuer_body(each, each.login, await asyncio.to_thread(_ca_pem, each.ca_file))
        for each in issuers
        if each.login is not None
    ]
    return responses.json_response({"issuers": found, "urls": list(services.options.urls)})


def _ca_pem(file: Path | None) -> str | None:
    """Return only the certificates in a file, because the file might also have a key. None if it can't be read."""
    if file is None:
        return None
    try:
        return chain_pem(parse_certificates(file.read_bytes())).decode()
    except (OSError, InvalidRequest):
        return None


@router.get(OWN + "/caller", responses=described("The caller.", bodies.CallerBody))
async def show_caller(call: CallDep) -> Response:
    """Show who the caller is, and the enabled projects in which they have a role.

    For clients with an access key, which names no user, and where the built-in identity is off.
    """
    projects = await call.services.identity.projects_of(call.caller)
    enabled = [each for each in projects if each.enabled and each.domain.enabled]
    return responses.private(bodies.caller_body(call.caller, enabled))


@router.post(
    OWN + "/caller/logout",
    responses=described(
        "The logins have ended, and the certificates are revoked.",
        bodies.LoggedOutBody,
        errors=_LOGOUT_ERRORS,
    ),
    openapi_extra=json_body(bodies.LogoutRequest.model_json_schema(), required=False)
    | query.described([_DRY_RUN]),
)
async def log_out_everywhere(call: CallDep) -> Response:
    """End all logins of the caller, and revoke all their certificates.

    For a lost machine. The revocation can't be undone. Takes more than a second, and is safe to repeat.
    """
    caller, services = call.caller, call.services
    dry_run = bool(query.parsed(call.request.query_params, [_DRY_RUN], ()))
    with_keys = False
    if call.body:
        require_json(call.request)
        with_keys = parsed(call.body, bodies.LogoutRequest).keys or False
    logout = services.revocation.logout
    end = logout.preview if dry_run else logout.everywhere
    done = await end(caller, with_keys=with_keys)
    clusters = () if dry_run else await services.inventory.clusters_of_user(caller.user.id)
    new_logins_from = None
    if caller.issuer != BUILT_IN:
        issuers = services.oidc.issuers if services.oidc is not None else ()
        leeways = {issuer.url: issuer.leeway for issuer in issuers}
        # Rounded up, because tokens have whole seconds.
        new_logins_from = services.inventory.now() + leeways.get(caller.issuer, CLOCK_DIFFERENCE) + _SECOND
    return responses.private(bodies.logged_out_body(caller, done, new_logins_from, clusters))


@router.post(
    OWN + "/identity/explain",
    responses=described("The checks, and the user to whom the claims are mapped.", bodies.ExplanationBody),
    openapi_extra=json_body(bodies.ExplainRequest.model_json_schema()),
)
async def explain_token(call: CallDep) -> Response:
    """Explain whether a token from an OIDC issuer would be accepted.

    Only for operators. Authenticates nobody, and stores or logs nothing of the token.
    """
    require_operator(call.caller)
    require_json(call.request)
    text = parsed(call.body, bodies.ExplainRequest).token
    report = await report_on_token(call.services.oidc, call.services.identity.federation, text)
    return responses.private(bodies.explanation_body(report))


@router.post(
    OWN + "/users/{user_id}/block",
    responses=described("Blocked, and their certificates are revoked.", bodies.BlockedBody, errors=_CONFLICT),
)
async def block_user(call: CallDep, user_id: str) -> Response:
    """Block a user, and revoke their certificates.

    Only for operators. Disables a user of the built-in identity. Users of OIDC issuers and of Keystone are blocked here
    only. Their tokens and temporary keys end, and logins and access keys fail until they are unblocked. Old
    certificates stay revoked.
    """
    require_operator(call.caller)
    services = call.services
    await services.identity.block(user_id, actor=call.caller.actor)
    user = await services.revocation.previews.users.with_id(user_id)
    return responses.private(
        bodies.blocked_body(user_id, user, await services.inventory.clusters_of_user(user_id))
    )


@router.post(
    OWN + "/users/{user_id}/unblock",
    status_code=204,
    responses=described("Unblocked.", status=204, errors=_CONFLICT),
    response_class=Response,
)
async def unblock_user(call: CallDep, user_id: str) -> Response:
    """Accept the logins of a blocked or disabled user again. Only for operators."""
    require_operator(call.caller)
    await call.services.identity.unblock(user_id, actor=call.caller.actor)
    return Response(status_code=204)
