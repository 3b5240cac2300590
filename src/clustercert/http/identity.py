"""Routes that list OIDC issuers, show the caller, end logins and access keys, explain tokens and block users."""

import asyncio
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import AliasPath, BaseModel, BeforeValidator, Field
from starlette.responses import Response

from clustercert.authn.credentials import only_credential
from clustercert.authn.federated import CLOCK_DIFFERENCE
from clustercert.certificates.credential_end import RefusedRequests
from clustercert.http import OWN, responses
from clustercert.http.administration.credentials import KeyBody, KeyListBody
from clustercert.http.body import RequestBody, parsed, require_json
from clustercert.http.certificates import REFUSES
from clustercert.http.context import context_of
from clustercert.http.dependencies import Call, CallDep, ServicesDep
from clustercert.http.fleet import ENFORCEMENT
from clustercert.http.openapi import ERRORS, KIB, PUBLIC_ERRORS, described, json_body
from clustercert.http.paging import KeyPageDep, numbered_page
from clustercert.http.responses import ResponseBody, Time
from clustercert.identity.token_report import TokenReport, report_on_token
from clustercert.model import Group, JsonObject
from clustercert.model.choices import EnforcementState
from clustercert.model.errors import InvalidRequest
from clustercert.model.identity import BUILT_IN
from clustercert.model.login_client import BearerKind
from clustercert.model.rights import require_operator
from clustercert.pki.certificates import chain_pem, parse_certificates


class ExplainRequest(RequestBody):
    """The body of a request to explain a token."""

    token: str = Field(description="The JWT.", json_schema_extra={"minLength": 1})


class LogoutRequest(RequestBody):
    """The optional body of a request to end all logins."""

    keys: bool | None = Field(default=None, description="Whether to delete permanent access keys, too.")


def _names(groups: Iterable[Group]) -> list[str]:
    return [group.name for group in groups]


_Names = Annotated[list[str], BeforeValidator(_names)]


class IssuerBody(ResponseBody):
    """An issuer at which people log in, with the public OAuth client for these logins.

    In `redirect_uris`, an address without a port stands for any port. `token` says which token this service accepts:
    the ID token or the access token. If `resource` (RFC 8707) is not null, clients request access tokens for this
    resource. `trusted_audiences` lists the audiences that an ID token may name besides the client and the resource.
    `ca_pem` has the CAs that verify the issuer's server; null for the system's CAs.
    """

    name: str
    issuer: str = Field(validation_alias="url")
    client_id: str = Field(validation_alias=AliasPath("login", "client_id"))
    scopes: list[str] = Field(validation_alias=AliasPath("login", "scopes"))
    redirect_uris: list[str] = Field(validation_alias=AliasPath("login", "redirect_uris"))
    token: BearerKind = Field(validation_alias=AliasPath("login", "bearer"))
    parameters: dict[str, str] = Field(validation_alias=AliasPath("login", "parameters"))
    resource: str | None = Field(validation_alias=AliasPath("login", "resource"))
    trusted_audiences: list[str] = Field(validation_alias=AliasPath("login", "trusted_audiences"))
    ca_pem: str | None


class IssuersBody(BaseModel):
    """The issuers, in the order of the settings. `urls` has this service's addresses from the settings."""

    issuers: list[IssuerBody]
    urls: list[str]


class CheckBody(ResponseBody):
    """A check of the token.

    If the check failed, `came` has the value in the token, and `expected` has the values that the service accepts.
    """

    check: str
    passed: bool
    came: str
    expected: str


class RoleRuleBody(ResponseBody):
    """A rule of the issuer's settings, `[[identity.issuers.roles]]`. The user gets the role if `unmet` is empty."""

    role: str
    projects: list[str] | None = Field(
        description="Null means all projects in which the issuer's users can have roles."
    )
    service: bool
    unmet: list[CheckBody] = Field(description="The conditions that the user does not meet.")


class MappedUserBody(ResponseBody):
    """The user whom the token describes, with their roles by project id, and in the whole service."""

    id: str = Field(validation_alias=AliasPath("user", "id"))
    name: str = Field(validation_alias=AliasPath("user", "name"))
    groups: _Names
    roles: dict[str, list[str]]
    service_roles: list[str]
    expires_at: Time | None


class TokenExplanationBody(ResponseBody):
    """Whether the token would be accepted, and for which user. `failed` is the first check that failed.

    `issuer` is the name that the settings give to the token's issuer; null if the settings have no such issuer.
    `role_rules` has the issuer's rules for roles, in the order of the settings; it is empty if a check failed.
    `missing` has the projects, domains and roles that the issuer's settings mention but that do not exist.
    """

    accepted: bool
    issuer: str | None
    failed: str | None
    checks: list[CheckBody]
    user: MappedUserBody | None
    role_rules: list[RoleRuleBody]
    missing: list[str]

    @classmethod
    def render(cls, source: TokenReport, **_others: object) -> JsonObject:
        """Return the JSON object of a report on a token."""
        explanation, failed, login = source.explanation, source.failed, source.login
        user = explanation.user
        return {
            "accepted": failed is None,
            "issuer": explanation.issuer.name if explanation.issuer is not None else None,
            "failed": failed.check if failed is not None else None,
            "checks": [CheckBody.render(each) for each in explanation.checks],
            "user": user
            and MappedUserBody.render(
                user,
                roles=login.roles if login else {},
                service_roles=login.service_roles if login else (),
            ),
            "role_rules": [RoleRuleBody.render(each) for each in explanation.role_rules],
            "missing": list(source.missing),
        }


class UserClusterBody(ResponseBody):
    """A cluster for which a user has certificates that have not expired.

    `until` is the time when the last of these certificates expires.
    """

    id: str = Field(validation_alias=AliasPath("cluster", "id"))
    name: str = Field(validation_alias=AliasPath("cluster", "name"))
    project_id: str = Field(validation_alias=AliasPath("cluster", "project_id"))
    until: Time
    enforcement: EnforcementState = Field(
        validation_alias=AliasPath("enforcement", "state"), description=ENFORCEMENT
    )
    enforced_by: list[str] = Field(
        validation_alias=AliasPath("enforcement", "enforced_by"),
        description="The fast controls that are set up in the cluster. If the list is empty, the API server"
        " accepts revoked certificates until they expire.",
    )
    refuses: RefusedRequests = Field(
        validation_alias=AliasPath("enforcement", "refuses"), description=REFUSES
    )


class BlockedBody(ResponseBody):
    """A blocked user, and at most 100 clusters for which the user had certificates.

    The clusters are sorted by the expiry of these certificates, the latest first.

    `name`, `domain` and `issuer` are null if the service has not seen the user log in.
    """

    id: str
    name: str | None
    domain: str | None = Field(description="The domain's name, or the issuer's name in the settings.")
    issuer: str | None = Field(description="The URL of the issuer or Keystone, or `built-in`.")
    clusters: list[UserClusterBody]


class OwnKeyBody(ResponseBody):
    """A permanent access key of the caller."""

    access_key: str = Field(validation_alias="id")
    description: str
    enabled: bool


class LoggedOutBody(ResponseBody):
    """The certificates, sessions, tokens and access keys that a logout ended, and the access keys that remain."""

    id: str = Field(validation_alias=AliasPath("user", "id"))
    name: str = Field(validation_alias=AliasPath("user", "name"))
    issuer: str = Field(description="The URL of the OIDC issuer or of Keystone, or `built-in`.")
    certificates: int = Field(description="How many certificates were valid before this request.")
    sessions: int = Field(description="How many sessions of the console were ended.")
    tokens: int = Field(description="How many tokens of the built-in identity service were deleted.")
    temporary_keys: int
    deleted_keys: list[OwnKeyBody]
    kept_keys: list[OwnKeyBody] = Field(description="Permanent access keys, which still work.")
    renewals_end: bool = Field(
        validation_alias="keeps_login_time",
        description="Whether this service refuses logins from older sessions at the issuer. False for Keystone, and for"
        " issuers that don't say when a user logged in.",
    )
    new_logins_from: Time | None = Field(
        description="The time from which new logins at the issuer or Keystone are accepted. The time allows for"
        " differences between clocks. Null for the built-in identity service."
    )
    clusters: list[UserClusterBody] = Field(
        description="The clusters for which the caller has unexpired certificates, at most 100."
    )


class OwnProjectBody(ResponseBody):
    """A project in which the caller has a role."""

    id: str
    name: str
    domain: str = Field(validation_alias=AliasPath("domain", "name"))
    domain_id: str = Field(validation_alias=AliasPath("domain", "id"))
    roles: list[str] = Field(description="The caller's roles in the project, sorted by name.")


class RoleClaimBody(ResponseBody):
    """A claim that the issuer's rules for roles read, with its value in the caller's token."""

    claim: str
    value: str = Field(description="Empty if the token does not have the claim.")
    is_met: bool | None = Field(
        description="Whether the claim meets its condition in the rule that names the caller's identity and has the"
        " fewest unmet conditions. Null if that rule does not read the claim, or if there is no such rule."
    )


class CallerBody(ResponseBody):
    """The sender of the request, their credential and their projects.

    `issuer` is the URL of the OIDC issuer or of Keystone, or `built-in`. `expires_at` says when the
    token or access key expires; null if it does not expire.
    """

    id: str = Field(validation_alias=AliasPath("user", "id"))
    name: str = Field(validation_alias=AliasPath("user", "name"))
    domain: str = Field(validation_alias=AliasPath("user", "domain", "name"))
    issuer: str
    groups: _Names
    service_roles: list[str]
    method: str
    expires_at: Time | None
    projects: list[OwnProjectBody]
    missed_role_claims: list[RoleClaimBody] | None = Field(
        description="For a token of an OIDC issuer whose rules give the caller no role: the claims that the rules read."
        " Null for other callers."
    )
    recommended_client: str | None = Field(
        description="The version of the command line that users should have at least."
    )


_PUBLIC = {status: text for status, text in PUBLIC_ERRORS.items() if status in (429, 500, 503)}
_CONFLICT = ERRORS | {
    409: "The user is blocked already, or another request changed the user at the same time."
}

_NO_KEY = {404: "The caller has no such access key."}
_LOGOUT_ERRORS = ERRORS | {409: "Another request changed the user at the same time."}
_SECOND = timedelta(seconds=1)

router = APIRouter(tags=["Identity providers"])


@router.get(
    OWN + "/issuers",
    responses=described("The issuers.", IssuersBody, errors=_PUBLIC),
)
async def list_issuers(services: ServicesDep) -> Response:
    """List the OIDC issuers at which people log in.

    Needs no authentication. The response contains the public OAuth client of each issuer, and the CAs of the issuer's
    server.
    """
    issuers = services.oidc.issuers if services.oidc is not None else ()
    found = [
        IssuerBody.render(each, ca_pem=await asyncio.to_thread(_ca_pem, each.ca_file))
        for each in issuers
        if each.login is not None
    ]
    return responses.json_response({"issuers": found, "urls": list(services.options.urls)})


def _ca_pem(file: Path | None) -> str | None:
    """Return only the certificates in a file, which might also have a key. Returns None if the file is unreadable."""
    if file is None:
        return None
    try:
        return chain_pem(parse_certificates(file.read_bytes())).decode()
    except (OSError, InvalidRequest):
        return None


@router.get(OWN + "/caller", responses=described("The caller.", CallerBody))
async def show_caller(call: CallDep) -> Response:
    """Show who the caller is, and the enabled projects in which they have a role, whatever the token's scope.

    For clients with an access key, because the key does not reveal its user, and for clients of a service without the
    built-in identity service.
    """
    projects = await call.services.identity.projects_of(call.caller)
    caller = await call.services.identity.with_all_roles(call.caller)
    enabled = [
        OwnProjectBody.read(each, roles=caller.roles_in(each.id))
        for each in projects
        if each.enabled and each.domain.enabled
    ]
    return responses.private(
        CallerBody.render(
            call.caller,
            projects=enabled,
            missed_role_claims=None if enabled else await _missed_role_claims(call),
            recommended_client=call.services.options.recommended_client,
        )
    )


async def _missed_role_claims(call: Call) -> list[RoleClaimBody] | None:
    """Return what a caller without a role may know about the rules of their token's issuer."""
    credential = context_of(call.request).credential or only_credential(call.request.scope["headers"])
    oidc = call.services.oidc
    if oidc is None or not oidc.accepts(credential):
        return None
    found = await oidc.missed_role_claims(credential.text)
    return None if found is None else [RoleClaimBody.read(each) for each in found]


@router.post(
    OWN + "/caller/logout",
    responses=described(
        "The logins have ended, and the certificates are revoked.",
        LoggedOutBody,
        errors=_LOGOUT_ERRORS,
    ),
    openapi_extra=json_body(LogoutRequest, limit=KIB, required=False),
)
async def log_out_everywhere(
    call: CallDep,
    dry_run: Annotated[
        Literal["All"] | None,
        Query(alias="dryRun", description="All: end nothing, and return what would end."),
    ] = None,
) -> Response:
    """End all logins of the caller, and revoke all their certificates.

    Send this request if a machine was lost. The revocation can't be undone. The request takes more than a second. You
    can safely repeat the request.
    """
    caller, services = call.caller, call.services
    with_keys = False
    if call.body:
        require_json(call.request)
        with_keys = parsed(call.body, LogoutRequest).keys or False
    logout = services.revocation.logout
    end = logout.preview if dry_run else logout.end_all_logins
    done = await end(caller, with_keys=with_keys)
    clusters = () if dry_run else await services.inventory.clusters_of_user(caller.user.id)
    new_logins_from = None
    if caller.issuer != BUILT_IN:
        issuers = services.oidc.issuers if services.oidc is not None else ()
        leeways = {issuer.url: issuer.leeway for issuer in issuers}
        # Add a second, because times in tokens are whole seconds.
        new_logins_from = services.inventory.now() + leeways.get(caller.issuer, CLOCK_DIFFERENCE) + _SECOND
    body = LoggedOutBody.render(
        caller,
        certificates=done.certificates,
        sessions=done.logins.sessions,
        tokens=done.logins.tokens,
        temporary_keys=done.logins.temporary_keys,
        deleted_keys=done.logins.keys,
        kept_keys=done.kept,
        new_logins_from=new_logins_from,
        clusters=clusters,
    )
    return responses.private(body)


IsTemporary = Annotated[
    bool | None, Query(description="True lists only temporary keys, and false only permanent keys.")
]


@router.get(OWN + "/caller/access-keys", responses=described("A page of access keys.", KeyListBody))
async def list_own_keys(call: CallDep, page: KeyPageDep, temporary: IsTemporary = None) -> Response:
    """List the caller's access keys. Includes temporary keys. Sorted by `access_key`."""
    found = await call.services.identity.access_keys.queries.page_of_user(
        call.caller.user.id, temporary=temporary, after=page.after, limit=page.limit + 1
    )
    following = found[page.limit - 1].id if len(found) > page.limit else None
    return responses.private(
        numbered_page(
            "access_keys",
            found[: page.limit],
            KeyBody.render,
            lambda each: each.id,
            following,
            page.max_bytes,
        )
    )


@router.delete(
    OWN + "/caller/access-keys/{access_key}",
    status_code=204,
    responses=described("Deleted.", status=204, errors=ERRORS | _NO_KEY),
    response_class=Response,
)
async def delete_own_key(call: CallDep, access_key: str) -> Response:
    """Delete one of the caller's access keys. Also deletes all temporary keys of the caller."""
    await call.services.identity.access_keys.remove_own(call.caller, access_key)
    return Response(status_code=204, headers=responses.NO_STORE)


@router.post(
    OWN + "/identity/explain",
    responses=described("The checks, and the user to whom the claims are mapped.", TokenExplanationBody),
    openapi_extra=json_body(ExplainRequest, limit=20 * KIB),
)
async def explain_token(call: CallDep) -> Response:
    """Explain whether a token from an OIDC issuer would be accepted.

    Only for operators. Does not log anyone in, and neither stores nor logs any part of the token.
    """
    require_operator(call.caller)
    require_json(call.request)
    text = parsed(call.body, ExplainRequest).token
    report = await report_on_token(call.services.oidc, call.services.identity.federation, text)
    return responses.private(TokenExplanationBody.render(report))


@router.post(
    OWN + "/users/{user_id}/block",
    responses=described(
        "The user is blocked, and the user's certificates are revoked.", BlockedBody, errors=_CONFLICT
    ),
)
async def block_user(call: CallDep, user_id: str) -> Response:
    """Block a user, and revoke their certificates.

    Only for operators. Disables a user of the built-in identity service. Users of OIDC issuers and of Keystone are
    blocked in this service only. The user's sessions, tokens and temporary keys end. Logins and access keys fail until
    the user is unblocked. Unblocking the user does not restore the revoked certificates.
    """
    require_operator(call.caller)
    services = call.services
    await services.identity.block(user_id, actor=call.caller.actor)
    user = await services.revocation.previews.users.find_by_id(user_id)
    body = BlockedBody.render(
        user,
        id=user_id,
        name=user.name if user is not None else None,
        domain=user.domain if user is not None else None,
        issuer=user.issuer if user is not None else None,
        clusters=await services.inventory.clusters_of_user(user_id),
    )
    return responses.private(body)


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
