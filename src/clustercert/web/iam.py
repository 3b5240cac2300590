"""The Keystone v3 subset that the vendors' clients call, with the temporary access keys of their IAM.

Translates and stops; `render` gives errors Keystone's form.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from clustercert.errors import InvalidRequest
from clustercert.identity import Identity
from clustercert.identity.names import is_called
from clustercert.model import JsonObject, Project
from clustercert.store.tokens import LiveToken
from clustercert.web import iam_answers as answers
from clustercert.web import iam_bodies as bodies
from clustercert.web import render
from clustercert.web.bodies import parsed
from clustercert.web.deps import (
    CallerDep,
    IdentityDep,
    RawBody,
    ServicesDep,
    authenticated,
    base_url,
    json_object,
    origin,
)

router = APIRouter(tags=["Identity"])

_VARY = {"Vary": "X-Auth-Token"}
_PRIVATE = {**render.NO_STORE, **_VARY}
_YES_OR_NO = {"true": True, "false": False}

_FAILURES = {
    400: "The request does not say what the API asks for.",
    401: "No credential, or one that proves nothing; the same words for every cause.",
    403: "The credential is good and may not do this.",
    404: "No such thing, or another's.",
    408: "The request's body did not arrive in time.",
    413: "The request's body is over 64 KiB.",
    500: "Internal error.",
    503: "Not now; see Retry-After.",
}
_SUBJECT = {
    "name": "X-Subject-Token",
    "in": "header",
    "required": True,
    "description": "The token in question: one of the caller's user, or, for an operator, any.",
    "schema": {"type": "string", "pattern": "^[!-~]+$"},
}
# Beside a POST without credentials on the same path, these have to say that they want one.
_ABOUT_A_TOKEN: dict[str, Any] = {
    "parameters": [_SUBJECT],
    "security": [{"token": []}, {"bearer": []}, {"signature": []}],
}

NoCatalog = Annotated[str | None, Query(description="Present with any value: leave the catalog out.")]


def _answers(
    status: int, description: str, model: type[BaseModel] | None, *, token: bool = False
) -> dict[int | str, dict[str, Any]]:
    """The documentation of a success and of every failure."""
    success: dict[str, Any] = {"description": description}
    if model is not None:
        success["model"] = model
    if token:
        success["headers"] = {"X-Subject-Token": {"description": "The token.", "schema": {"type": "string"}}}
    documented: dict[int | str, dict[str, Any]] = {status: success}
    for code, text in _FAILURES.items():
        documented[code] = {"model": answers.KeystoneError, "description": text}
    return documented


def version_list(base: str) -> JsonObject:
    """What `/` says of the identity service; openstacksdk begins there with an auth_url without a path."""
    return {"versions": {"values": [answers.version(base)]}}


@router.get("/v3/", include_in_schema=False)
@router.get(
    "/v3",
    summary="The version of the identity API",
    responses={200: {"model": answers.VersionAnswer, "description": "The version."}},
)
async def show_version(request: Request) -> Response:
    """Where discovery ends: openstacksdk asks for it before it logs in."""
    return render.json_response({"version": answers.version(base_url(request))})


@router.post(
    "/v3/auth/tokens",
    summary="Log in: obtain a token",
    status_code=201,
    responses=_answers(201, "The token is in X-Subject-Token.", answers.TokenAnswer, token=True),
    openapi_extra=bodies.document(bodies.TokenRequest),
)
async def create_token(
    request: Request, raw: RawBody, identity: IdentityDep, nocatalog: NoCatalog = None
) -> Response:
    """By password, or by a token for another scope, which ends when the first one does."""
    asked = parsed(json_object(raw), bodies.TokenRequest)
    issued = await identity.tokens.issue(asked.proof(), asked.scope())
    request.scope["clustercert.log"] = {"user": issued.live.user.id}
    return _token_response(request, identity, issued.live, issued.text, 201, nocatalog)


@router.get(
    "/v3/auth/tokens",
    summary="What a token is worth",
    responses=_answers(200, "The token is good.", answers.TokenAnswer, token=True),
    openapi_extra=_ABOUT_A_TOKEN,
)
async def show_token(
    request: Request, caller: CallerDep, identity: IdentityDep, nocatalog: NoCatalog = None
) -> Response:
    """For the token's own user, and for operators; for others it does not exist."""
    text = _subject_token(request)
    live = await identity.tokens.inspect(caller, text)
    return _token_response(request, identity, live, text, 200, nocatalog)


@router.head(
    "/v3/auth/tokens",
    summary="Whether a token is good",
    responses=_answers(200, "The token is good.", None, token=True),
    response_class=Response,
    openapi_extra=_ABOUT_A_TOKEN,
)
async def check_token(request: Request, caller: CallerDep, identity: IdentityDep) -> Response:
    """For the token's own user, and for operators; for others it does not exist."""
    text = _subject_token(request)
    await identity.tokens.inspect(caller, text)
    return Response(headers={**_PRIVATE, "X-Subject-Token": text})


@router.delete(
    "/v3/auth/tokens",
    summary="Revoke a token",
    status_code=204,
    responses=_answers(204, "The token is worth nothing any more.", None),
    response_class=Response,
    openapi_extra=_ABOUT_A_TOKEN,
)
async def revoke_token(request: Request, caller: CallerDep, identity: IdentityDep) -> Response:
    """For the token's own user, and for operators. Tokens and keys that were made with it live on."""
    await identity.tokens.revoke(caller, _subject_token(request))
    return Response(status_code=204, headers=_PRIVATE)


@router.get(
    "/v3/projects",
    summary="List the caller's projects",
    responses=_answers(200, "The projects, by domain and name.", answers.ProjectsAnswer),
)
async def list_projects(
    request: Request,
    caller: CallerDep,
    identity: IdentityDep,
    name: Annotated[str | None, Query(description="Only projects of this name.")] = None,
    domain_id: Annotated[str | None, Query(description="Only projects of this domain.")] = None,
    enabled: Annotated[
        str | None, Query(description="Only these.", json_schema_extra={"enum": list(_YES_OR_NO)})
    ] = None,
) -> Response:
    """Those in which the caller's user has a role, whatever the scope of the token."""
    wanted = _yes_or_no("enabled", enabled)
    found = [
        project
        for project in await identity.roles.projects_of(caller.user)
        if is_called(project.name, name)
        and domain_id in (None, project.domain.id)
        and wanted in (None, project.enabled)
    ]
    return _projects_response(request, found)


@router.get(
    "/v3/projects/{project_id}",
    summary="Show one of the caller's projects",
    responses=_answers(200, "The project.", answers.ProjectAnswer),
)
async def show_project(
    request: Request, project_id: str, caller: CallerDep, identity: IdentityDep
) -> Response:
    """One in which the caller's user has a role; any other does not exist."""
    project = await identity.roles.project_of(caller.user, project_id)
    return render.json_response({"project": answers.project(project, base_url(request))}, headers=_VARY)


@router.get(
    "/v3/auth/projects",
    summary="List the projects that a token can be for",
    responses=_answers(200, "The projects, by domain and name.", answers.ProjectsAnswer),
)
async def list_scopes(request: Request, caller: CallerDep, identity: IdentityDep) -> Response:
    """Those that are enabled and in which the caller's user has a role."""
    projects = await identity.roles.projects_of(caller.user)
    return _projects_response(request, [p for p in projects if p.enabled and p.domain.enabled])


@router.get(
    "/v3/auth/catalog",
    summary="List the services",
    responses=_answers(200, "The catalog.", answers.CatalogAnswer),
)
async def show_catalog(request: Request, caller: CallerDep, identity: IdentityDep) -> Response:  # noqa: ARG001 - authenticated callers only
    """As in the answer to a login, for callers with an access key, who never log in."""
    base = base_url(request)
    body: JsonObject = {
        "catalog": answers.catalog(identity.region, base),
        "links": {"self": f"{base}/v3/auth/catalog"},
    }
    return render.json_response(body, headers=_VARY)


@router.get(
    "/v3/auth/domains",
    summary="List the caller's domain",
    responses=_answers(200, "The domain.", answers.DomainsAnswer),
)
async def list_domains(
    request: Request,
    caller: CallerDep,
    name: Annotated[str | None, Query(description="Only a domain of this name.")] = None,
) -> Response:
    """The one that the caller's user is in."""
    base, domain = base_url(request), caller.user.domain
    items = [answers.domain(domain, base)] if is_called(domain.name, name) else []
    return render.json_response(answers.listed("domains", items, f"{base}/v3/auth/domains"), headers=_VARY)


@router.post(
    "/v3.0/OS-CREDENTIAL/securitytokens",
    summary="Obtain a temporary access key",
    status_code=201,
    responses=_answers(201, "The key; its secret is shown this once.", answers.TemporaryKeyAnswer),
    openapi_extra=bodies.document(bodies.TemporaryKeyRequest),
)
async def create_temporary_key(
    request: Request, raw: RawBody, identity: IdentityDep, services: ServicesDep
) -> Response:
    """For the user of the request's credential or, without one, of the token in the body.

    The key reaches what its user reaches and ends no later than that credential.
    """
    caller, asked = None, None
    if any(request.headers.get(name) for name in ("x-auth-token", "authorization")):
        caller = await authenticated(request, raw, services)
    asked = parsed(json_object(raw), bodies.TemporaryKeyRequest)
    if caller is None:
        caller = await identity.tokens.caller_of_token(asked.token() or "", origin(request))
    issued = await identity.access_keys.create_temporary(caller, asked.lifetime())
    request.scope["clustercert.log"] = {"user": caller.user.id}
    credential = answers.temporary_key(issued)
    return render.json_response({"credential": credential}, 201, _PRIVATE)


def _subject_token(request: Request) -> str:
    texts = request.headers.getlist("x-subject-token")
    if len(texts) != 1 or not texts[0]:
        raise InvalidRequest("Send the token in question in one X-Subject-Token header.")
    return texts[0]


def _token_response(
    request: Request, identity: Identity, live: LiveToken, text: str, status: int, nocatalog: str | None
) -> Response:
    scoped = live.project is not None or live.domain is not None
    services = answers.catalog(identity.region, base_url(request)) if scoped and nocatalog is None else None
    headers = {**_PRIVATE, "X-Subject-Token": text}
    return render.json_response(answers.token(live, services), status, headers)


def _projects_response(request: Request, projects: list[Project]) -> Response:
    base = base_url(request)
    items = [answers.project(project, base) for project in projects]
    return render.json_response(answers.listed("projects", items, f"{base}{request.url.path}"), headers=_VARY)


def _yes_or_no(name: str, text: str | None) -> bool | None:
    if text is None:
        return None
    if text.lower() not in _YES_OR_NO:
        raise InvalidRequest(f"{name}: the values are true and false.")
    return _YES_OR_NO[text.lower()]
