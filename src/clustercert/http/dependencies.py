"""FastAPI dependencies for routes: services, raw body, caller, limits.

The contract defines the order of checks: the body's size, the caller, the body's content.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, cast

from fastapi import Depends, Request

from clustercert.audit.log import AuditLog
from clustercert.audit.refusals import DenialAudit
from clustercert.authn.credentials import Authenticator, only_credential
from clustercert.certificates.crls import Crls
from clustercert.certificates.list import Inventory
from clustercert.certificates.revocation import RevocationService
from clustercert.clusters.registry import Clusters
from clustercert.http.body import received
from clustercert.http.context import context_of
from clustercert.identity.service import Identity
from clustercert.issuance.explanations import Explanations
from clustercert.kubernetes.webhook import Webhook
from clustercert.limits import Limiter, RouteClass
from clustercert.limits.failures import FailureLimit
from clustercert.limits.issuing import CertificateIssuer
from clustercert.model import Caller, UnverifiedRequest
from clustercert.model.choices import EndpointsForm
from clustercert.model.errors import CredentialUnverified, Unauthenticated
from clustercert.policy.rule_settings import PolicySettings

if TYPE_CHECKING:
    from clustercert.authn.oidc.authenticator import OidcAuthenticator

MAX_BODY = 64 * 1024

CCE_PREFIXES = ("/api/v3/", "/autopilot/v3/")
API_PREFIX = "/clustercert/v1/"
WEBHOOK_PREFIX = "/clustercert/v1/kubernetes/"


@dataclass(frozen=True, slots=True)
class Options:
    """The settings that routes need; `settings` describes them.

    Attributes:
        urls: the addresses of the service: `public_url`, if it is set, and `other_urls`.
        page_bytes: about the maximum size of a page of a list.
    """

    public_url: str | None
    urls: tuple[str, ...]
    body_timeout: float
    insecure_external: bool
    get_clustercert: bool
    max_duration: int
    endpoints: EndpointsForm
    built_in_identity: bool
    metrics_public: bool
    metrics_loopback: bool
    metrics_token: str | None
    page_bytes: int


@dataclass(frozen=True, slots=True)
class Services:
    """The use cases that routes call; `server.application` creates them.

    Attributes:
        check_ready: raises Unavailable naming the part that does not respond.
        update_gauges: updates metrics from the store. Raises Unavailable.
    """

    issuance: CertificateIssuer
    explanations: Explanations
    clusters: Clusters
    identity: Identity
    revocation: RevocationService
    audit_log: AuditLog
    denials: DenialAudit
    inventory: Inventory
    crls: Crls
    webhook: Webhook
    authenticator: Authenticator
    oidc: "OidcAuthenticator | None"
    limiter: Limiter
    failure_limit: FailureLimit
    check_ready: Callable[[], Awaitable[None]]
    update_gauges: Callable[[], Awaitable[None]]
    options: Options
    policy: PolicySettings


async def services(request: Request) -> Services:
    return cast("Services", request.app.state.services)


ServicesDep = Annotated[Services, Depends(services)]


async def raw_body(request: Request, parts: ServicesDep) -> bytes:
    """Read the whole body. Raises TooLarge or RequestTimeout."""
    return await received(request, parts.options.body_timeout, MAX_BODY)


RawBody = Annotated[bytes, Depends(raw_body)]


async def authenticated(request: Request, raw: bytes, parts: Services) -> Caller:
    """Authenticate the caller and check their limits. Raises Unauthenticated or TooManyRequests.

    Always verifies a token or signature, regardless of earlier failures from the same address.
    """
    scope, context = request.scope, context_of(request)
    unverified = UnverifiedRequest(
        method=request.method,
        raw_path=scope["raw_path"].decode("latin-1"),
        raw_query=scope["query_string"].decode("latin-1"),
        headers=tuple(scope["headers"]),
        body=raw,
        origin=context.origin,
    )
    try:
        caller = await parts.authenticator.authenticate(only_credential(unverified.headers), unverified)
    except Unauthenticated as failure:
        await check_limits(request, parts, None)
        parts.failure_limit.check(context.origin, failure)
        raise
    except CredentialUnverified:
        # Count this as a failed authentication: while an issuer can't be reached, invented tokens cause this error,
        # too.
        await check_limits(request, parts, None)
        parts.failure_limit.check(context.origin)
        parts.failure_limit.count(context.origin)
        raise
    context.caller = caller
    await check_limits(request, parts, caller)
    return caller


@dataclass(frozen=True, slots=True)
class Call:
    """An authenticated caller's request, with its whole body and the services that its route needs."""

    request: Request
    services: Services
    body: bytes
    caller: Caller


async def call(request: Request, parts: ServicesDep, raw: RawBody) -> Call:
    """Authenticate the caller and check their limits. Raises Unauthenticated or TooManyRequests."""
    return Call(request, parts, raw, await authenticated(request, raw, parts))


CallDep = Annotated[Call, Depends(call)]


def check_limits(request: Request, parts: Services, caller: Caller | None) -> Awaitable[None]:
    """Check the rate limits; called once for each request. Raises TooManyRequests."""
    return parts.limiter.check(
        _route_class(request.scope["path"]), context_of(request).origin.address, caller
    )


async def anonymous(request: Request, parts: ServicesDep) -> None:
    """Check the rate limits on a route that needs no authentication. Raises TooManyRequests."""
    await check_limits(request, parts, None)


Anonymous = Depends(anonymous)


def _route_class(path: str) -> RouteClass:
    if path.startswith(CCE_PREFIXES):
        return "cce"
    if path.startswith(WEBHOOK_PREFIX):
        return "webhook"
    return "api" if path.startswith(API_PREFIX) else "keystone"


def base_url(request: Request) -> str:
    """Return the service's URL without a final slash: the configured one, else the one in the request."""
    configured = cast("Services", request.app.state.services).options.public_url
    return configured or f"{request.url.scheme}://{request.url.netloc}"
