"""The Keystone v3 subset that the vendors' clients call, and temporary access keys as in the vendors' IAM.

Errors are in Keystone's format, rendered by `http.responses`.
"""

import functools
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from clustercert.http import openapi, responses
from clustercert.http.body import parsed
from clustercert.http.context import context_of, log_caller
from clustercert.http.dependencies import (
    CallDep,
    RawBody,
    ServicesDep,
    authenticated,
    base_url,
)
from clustercert.http.keystone import bodies
from clustercert.identity.names import matches_name
from clustercert.identity.service import Identity
from clustercert.identity.tokens import ByPassword
from clustercert.model import JsonObject, Project
from clustercert.model.errors import InvalidRequest, NotFound
from clustercert.observability import tracing
from clustercert.store.identity.logins import LiveToken

router = APIRouter(tags=["Identity"])

_VARY = {"Vary": "X-Auth-Token"}
_PRIVATE = {**responses.NO_STORE, **_VARY}
_BOOLEANS = {"true": True, "false": False}

_described = functools.partial(
    openapi.described,
    errors={status: openapi.ERRORS[status] for status in (400, 408, 413, 415, 429, 500, 503)}
    | {
        401: "No valid credential. The message is the same for every cause.",
        403: "The credential is valid, but lacks the permission.",
        404: "Not found, or not visible to the caller.",
    },
    error_model=openapi.KeystoneError,
)
_TOKEN_HEADER = {"X-Subject-Token": "The token."}
_PROJECTS = _described("The projects, sorted by domain and name.")
_SUBJECT = {
    "name": "X-Subject-Token",
    "in": "header",
    "required": True,
    "description": "A token of the caller. Operators may name any token.",
    "schema": {"type": "string", "pattern": "^[!-~]+$"},
}
# Only the POST on this path works without a credential, so the other methods must declare that they need one.
_ABOUT_A_TOKEN: dict[str, Any] = {"parameters": [_SUBJECT], "security": openapi.AUTHENTICATED}

NoCatalog = Annotated[str | None, Query(description="If present, the response omits the catalog.")]


@router.get("/v3/", include_in_schema=False)
@router.get(
    "/v3",
    responses=_described("The version.", errors={}),
)
async def show_version(request: Request) -> Response:
    """Show the version of the identity API.

    openstacksdk requests the version before it logs in.
    """
    return responses.json_response({"version": bodies.version(base_url(request))})


@router.post(
    "/v3/auth/tokens",
    status_code=201,
    responses=_described(
        "The token is in X-Subject-Token.",
        status=201,
        headers=_TOKEN_HEADER,
    ),
    openapi_extra=openapi.json_body(bodies.TokenRequest, limit=8 * openapi.KIB),
)
async def create_token(
    request: Request, raw: RawBody, services: ServicesDep, nocatalog: NoCatalog = None
) -> Response:
    """Log in: obtain a token.

    Send a password or, to change the scope, a token. The new token expires at the same time as the sent token.
    """
    sent = parsed(raw, bodies.TokenRequest)
    proof, origin = sent.proof(), context_of(request).origin
    if isinstance(proof, ByPassword):
        services.failure_limit.check(origin)
    with tracing.span("authenticate"):
        issued = await services.identity.tokens.issue(proof, sent.scope(), origin.network)
    log_caller(issued.live.user)
    return _token_response(request, services.identity, issued.live, issued.text, 201, nocatalog)


@router.get(
    "/v3/auth/tokens",
    responses=_described("The token is valid.", headers=_TOKEN_HEADER),
    openapi_extra=_ABOUT_A_TOKEN,
)
async def show_token(call: CallDep, nocatalog: NoCatalog = None) -> Response:
    """Show a token. Only for the token's user and for operators. Others get 404."""
    text = _subject_token(call.request)
    identity = call.services.identity
    live = await identity.tokens.inspect(call.caller, text)
    return _token_response(call.request, identity, live, text, 200, nocatalog)


@router.head(
    "/v3/auth/tokens",
    responses=_described("The token is valid.", headers=_TOKEN_HEADER),
    response_class=Response,
    openapi_extra=_ABOUT_A_TOKEN,
)
async def check_token(call: CallDep) -> Response:
    """Check a token. Only for the token's user and for operators. Others get 404."""
    text = _subject_token(call.request)
    await call.services.identity.tokens.inspect(call.caller, text)
    return Response(headers={**_PRIVATE, "X-Subject-Token": text})


@router.delete(
    "/v3/auth/tokens",
    status_code=204,
    responses=_described("The token is revoked.", status=204),
    response_class=Response,
    openapi_extra=_ABOUT_A_TOKEN,
)
async def revoke_token(call: CallDep) -> Response:
    """Revoke a token.

    Only for the token's user and for operators. Tokens and keys that were obtained with the token stay valid.
    """
    await call.services.identity.tokens.revoke(call.caller, _subject_token(call.request))
    return Response(status_code=204, headers=_PRIVATE)


@router.get("/v3/users/{user_id}", responses=_described("The user."))
async def show_user(call: CallDep, user_id: str) -> Response:
    """Show the caller's own user. Responds with 404 to the id of a different user."""
    if user_id != call.caller.user.id:
        raise NotFound("Could not find user.")
    user = bodies.user(call.caller.user, base_url(call.request))
    return responses.json_response({"user": user}, headers=_VARY)


@router.post(
    "/v3/users/{user_id}/password",
    status_code=204,
    responses=_described("The password is changed.", status=204),
    response_class=Response,
    openapi_extra=openapi.json_body(bodies.PasswordRequest, limit=16 * openapi.KIB) | {"security": []},
)
async def change_password(request: Request, raw: RawBody, services: ServicesDep, user_id: str) -> Response:
    """Change a user's own password.

    The old password authenticates the request, as in a login. Deletes all tokens and temporary access keys of the
    user, and ends their sessions in the console.
    """
    sent, context = parsed(raw, bodies.PasswordRequest).user, context_of(request)
    services.failure_limit.check(context.origin)
    cookie = context.credential.text if context.credential is not None else None
    user = await services.identity.change_password(
        user_id, sent.original_password, sent.password, context.origin, cookie=cookie
    )
    log_caller(user)
    return Response(status_code=204, headers=_PRIVATE)


@router.get("/v3/projects", responses=_PROJECTS)
async def list_projects(
    call: CallDep,
    name: Annotated[str | None, Query(description="Only projects with this name.")] = None,
    domain_id: Annotated[str | None, Query(description="Only projects in this domain.")] = None,
    enabled: Annotated[
        str | None,
        Query(
            description="Only enabled (true) or disabled (false) projects.",
            json_schema_extra={"enum": list(_BOOLEANS)},
        ),
    ] = None,
) -> Response:
    """List the caller's projects. These are the projects in which the user has a role, whatever the token's scope."""
    if enabled is not None and enabled.lower() not in _BOOLEANS:
        raise InvalidRequest("enabled: must be true or false.")
    found = [
        project
        for project in await call.services.identity.projects_of(call.caller)
        if matches_name(project.name, name)
        and domain_id in (None, project.domain.id)
        and (enabled is None or project.enabled is _BOOLEANS[enabled.lower()])
    ]
    return _projects_response(call.request, found)


@router.get("/v3/projects/{project_id}", responses=_described("The project."))
async def show_project(call: CallDep, project_id: str) -> Response:
    """Show one of the caller's projects. Callers without a role in the project get 404."""
    found = await call.services.identity.project_of(call.caller, project_id)
    project = bodies.project(found, base_url(call.request))
    return responses.json_response({"project": project}, headers=_VARY)


@router.get("/v3/auth/projects", responses=_PROJECTS)
async def list_scopes(call: CallDep) -> Response:
    """List the projects that a token can be scoped to. These are the enabled projects in which the user has a role."""
    projects = await call.services.identity.projects_of(call.caller)
    return _projects_response(call.request, [p for p in projects if p.enabled and p.domain.enabled])


@router.get("/v3/auth/catalog", responses=_described("The catalog."))
async def show_catalog(call: CallDep) -> Response:
    """List the services.

    Returns the catalog that tokens also contain. Callers with an access key need this route, because they never log in.
    """
    base = base_url(call.request)
    body: JsonObject = {
        "catalog": bodies.catalog(call.services.identity.region, base),
        "links": {"self": f"{base}/v3/auth/catalog"},
    }
    return responses.json_response(body, headers=_VARY)


@router.get("/v3/auth/domains", responses=_described("The domain."))
async def list_domains(
    call: CallDep,
    name: Annotated[str | None, Query(description="Only a domain with this name.")] = None,
) -> Response:
    """List the caller's domain. The list has at most one entry."""
    domain = call.caller.user.domain
    found = [bodies.domain(domain, base_url(call.request))] if matches_name(domain.name, name) else []
    return _list_response(call.request, "domains", found)


@router.post(
    "/v3.0/OS-CREDENTIAL/securitytokens",
    status_code=201,
    responses=_described("The key. Only this response contains the secret.", status=201),
    openapi_extra=openapi.json_body(bodies.TemporaryKeyRequest, limit=8 * openapi.KIB),
)
async def create_temporary_key(request: Request, raw: RawBody, services: ServicesDep) -> Response:
    """Obtain a temporary access key.

    The key is for the caller or, if no header has a credential, for the user of the token in the body.

    The key has all rights of this user, and expires no later than the credential in the request.
    """
    caller, identity = None, services.identity
    if any(request.headers.get(name) for name in ("x-auth-token", "authorization")):
        caller = await authenticated(request, raw, services)
    sent = parsed(raw, bodies.TemporaryKeyRequest)
    if caller is None:
        caller = await identity.tokens.caller_of_token(sent.token() or "", context_of(request).origin)
        log_caller(caller.user)
    issued = await identity.access_keys.create_temporary(caller, sent.lifetime())
    credential = bodies.temporary_key(issued)
    return responses.json_response({"credential": credential}, 201, _PRIVATE)


def _subject_token(request: Request) -> str:
    texts = request.headers.getlist("x-subject-token")
    if len(texts) != 1 or not texts[0]:
        raise InvalidRequest("Send the token in one X-Subject-Token header.")
    return texts[0]


def _token_response(
    request: Request, identity: Identity, live: LiveToken, text: str, status: int, nocatalog: str | None
) -> Response:
    scoped = live.project is not None or live.domain is not None
    services = bodies.catalog(identity.region, base_url(request)) if scoped and nocatalog is None else None
    headers = {**_PRIVATE, "X-Subject-Token": text}
    return responses.json_response(bodies.token(live, services), status, headers)


def _projects_response(request: Request, projects: list[Project]) -> Response:
    base = base_url(request)
    return _list_response(request, "projects", [bodies.project(each, base) for each in projects])


def _list_response(request: Request, name: str, items: list[JsonObject]) -> Response:
    """Return a list as a single page. The link to the next page is null, because clients would follow a link."""
    links = {"self": f"{base_url(request)}{request.url.path}", "previous": None, "next": None}
    return responses.json_response({name: items, "links": links}, headers=_VARY)
