"""FastAPI dependencies for routes: services, raw body, caller.

The API contract defines the order of checks: first the body's size, then the caller, then the body's content.
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
from clustercert.clusters.ca_rotation import CaRotations
from clustercert.clusters.discarded_keys import DiscardedKeys
from clustercert.clusters.overview import Overviews
from clustercert.clusters.registry import Clusters
from clustercert.clusters.unknown_tokens import UnknownTokenDeletion
from clustercert.http import OWN
from clustercert.http.body import received
from clustercert.http.context import context_of, log_caller
from clustercert.http.openapi import max_body_bytes
from clustercert.http.query import refuse_unknown
from clustercert.identity.service import Identity
from clustercert.identity.sessions import Sessions
from clustercert.issuance.explanations import Explanations
from clustercert.kubernetes.webhook import Webhook
from clustercert.limits.failures import FailureLimit
from clustercert.limits.issuing import CertificateIssuer
from clustercert.model import Caller, UnverifiedRequest
from clustercert.model.errors import CredentialUnverified, Unauthenticated
from clustercert.observability import tracing
from clustercert.policy.rule_settings import PolicySettings
from clustercert.requests.service import AccessRequests
from clustercert.store.engine.generation import Generation

if TYPE_CHECKING:
    from clustercert.authn.oidc.authenticator import OidcAuthenticator

WEBHOOK_PREFIX = "/clustercert/v1/kubernetes/"


@dataclass(frozen=True, slots=True)
class Options:
    """The settings that routes need. The module `settings` describes them.

    Attributes:
        urls: the addresses of the service: `public_url`, if it is set, and `other_urls`.
        page_bytes: the approximate maximum size of one page of a list, in bytes.
        console: whether the service has the web console.
    """

    public_url: str | None
    urls: tuple[str, ...]
    body_timeout: float
    insecure_external: bool
    max_duration: int
    recommended_client: str | None
    built_in_identity: bool
    metrics_public: bool
    metrics_loopback: bool
    metrics_token: str | None
    page_bytes: int
    console: bool = False
    documentation: bool = True


@dataclass(frozen=True, slots=True)
class Services:
    """The use cases that routes call; `server.application` creates them.

    Attributes:
        name_hash: returns the keyed hash of a name that no account has. See `Custody.name_hash`.
        generation: the generation of the store, which changes with every change of rights.
        check_ready: returns why no certificates can be issued, or None. Raises Unavailable if a part that every request
            needs does not respond. The message names this part.
        update_gauges: updates metrics from the store. Raises Unavailable.
    """

    issuance: CertificateIssuer
    explanations: Explanations
    requests: AccessRequests
    clusters: Clusters
    ca_rotations: CaRotations
    discarded_keys: DiscardedKeys
    unknown_tokens: UnknownTokenDeletion
    identity: Identity
    sessions: Sessions
    revocation: RevocationService
    audit_log: AuditLog
    denials: DenialAudit
    inventory: Inventory
    overviews: Overviews
    crls: Crls
    webhook: Webhook
    authenticator: Authenticator
    oidc: "OidcAuthenticator | None"
    failure_limit: FailureLimit
    name_hash: Callable[[str], str]
    generation: Generation
    check_ready: Callable[[], Awaitable[str | None]]
    update_gauges: Callable[[], Awaitable[None]]
    options: Options
    policy: PolicySettings


async def services_of(request: Request) -> Services:
    return cast("Services", request.app.state.services)


ServicesDep = Annotated[Services, Depends(services_of)]


async def raw_body(request: Request, services: ServicesDep) -> bytes:
    """Read the whole body, up to the limit that the route declares. Raises the same errors as `received`."""
    return await received(request, services.options.body_timeout, max_body_bytes(request.scope["route"]))


RawBody = Annotated[bytes, Depends(raw_body)]


async def authenticated(request: Request, raw: bytes, services: Services) -> Caller:
    """Authenticate the caller. Raises Unauthenticated or TooManyFailures.

    Verifies the token or signature even if the address has reached the limit of failed authentications.
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
        with tracing.span("authenticate"):
            credential = context.credential or only_credential(unverified.headers)
            caller = await services.authenticator.authenticate(credential, unverified)
    except Unauthenticated as failure:
        services.failure_limit.check(context.origin, failure)
        raise
    except CredentialUnverified:
        # Count this as a failed authentication: while an issuer can't be reached, invented tokens cause this error,
        # too.
        services.failure_limit.check(context.origin)
        services.failure_limit.count(context.origin)
        raise
    context.caller = caller
    log_caller(caller.user)
    return caller


@dataclass(frozen=True, slots=True)
class Call:
    """An authenticated caller's request, with its whole body and the services that its route needs."""

    request: Request
    services: Services
    body: bytes
    caller: Caller


async def call(request: Request, services: ServicesDep, raw: RawBody) -> Call:
    """Authenticate the caller. Raises Unauthenticated or TooManyFailures.

    Raises InvalidRequest for an unknown query parameter in a request to this service's own API. The CCE and Keystone
    routes ignore unknown parameters.
    """
    caller = await authenticated(request, raw, services)
    if request.scope["query_string"] and request.scope["path"].startswith(OWN):
        refuse_unknown(request)
    return Call(request, services, raw, caller)


CallDep = Annotated[Call, Depends(call)]


def base_url(request: Request) -> str:
    """Return the service's URL without a final slash: `public_url` or, without this setting, the request's URL."""
    configured = cast("Services", request.app.state.services).options.public_url
    return configured or f"{request.url.scheme}://{request.url.netloc}"
