"""Webhooks of kube-apiservers: authorization (SubjectAccessReview) and audit events.

The body is read only if the request has the cluster's token. After an error, the API server's failurePolicy decides,
and may allow the request. So no input from a client of the API server may cause an error here.
"""

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from clustercert.http import responses
from clustercert.http.body import beginning, chunks
from clustercert.http.context import context_of
from clustercert.http.dependencies import Services, ServicesDep
from clustercert.http.openapi import ERRORS, TEXT, described, json_body
from clustercert.http.responses import EarlyResponse
from clustercert.kubernetes.webhook import audit_events, review
from clustercert.kubernetes.webhook.authorization import NO_OPINION, TOO_LARGE, Decision, count_decision
from clustercert.kubernetes.webhook.tokens import WrongToken, token_hash
from clustercert.model import JsonObject
from clustercert.model.errors import TooLarge, Unauthenticated, Unavailable
from clustercert.observability import log, metrics


class SubjectAccessReviewStatus(BaseModel):
    """The decision: denied with a reason, or no opinion; never allowed."""

    model_config = ConfigDict(extra="forbid")

    allowed: Literal[False]
    denied: Literal[True] = True
    reason: str = ""


class SubjectAccessReview(BaseModel):
    """The response to a SubjectAccessReview: only its status."""

    apiVersion: Literal["authorization.k8s.io/v1"]  # noqa: N815 - Kubernetes's name
    kind: Literal["SubjectAccessReview"]
    status: SubjectAccessReviewStatus


class KubernetesStatus(BaseModel):
    """The response to a batch of audit events."""

    apiVersion: Literal["v1"]  # noqa: N815 - Kubernetes's name
    kind: Literal["Status"]
    metadata: dict[str, object]
    status: Literal["Success"]


CLUSTER = "/clustercert/v1/kubernetes/clusters/{cluster_id}"
AUTHORIZE = f"{CLUSTER}/authorize"
AUDIT_EVENTS = f"{CLUSTER}/audit-events"
# Create the metric series for these errors at zero: otherwise, the alert on an increase would miss the first errors.
for _route in (AUTHORIZE, AUDIT_EVENTS):
    for _status in ("500", "503"):
        metrics.REQUESTS.labels(_route, "POST", _status)

# A review is usually about 1 KB. But a client can send a selector of 1 MB, the API server's header limit, which makes
# the review larger than 30 MB. A review over this limit is denied before the rest of the review arrives.
MAX_REVIEW = 256 * 1024

_SUCCESS: JsonObject = {"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success"}

_ERRORS = {
    400: "The body is not an object of the expected kind.",
    401: "The token is missing or wrong, or the cluster does not exist.",
    408: ERRORS[408],
    413: "The request's body is too large.",
    429: "A rate limit is exceeded; see Retry-After.",
    500: ERRORS[500],
    503: "The database does not respond. The API server's failurePolicy decides.",
}


def _object(api_version: str, kind: str, **properties: JsonObject) -> dict[str, Any]:
    """Describe the Kubernetes object in the request body."""
    properties = {"apiVersion": _constant(api_version), "kind": _constant(kind), **properties}
    schema: JsonObject = {
        "title": kind,
        "type": "object",
        "properties": properties,
        "required": list(properties),
    }
    return json_body(schema, limit=None) | {"security": [{"bearer": []}]}


def _constant(value: str) -> JsonObject:
    return {"type": "string", "const": value}


_STRINGS: JsonObject = {"type": "array", "items": TEXT}
_EXTRA: JsonObject = {"type": "object", "additionalProperties": _STRINGS}
_GROUPS: JsonObject = {"groups": _STRINGS, "extra": _EXTRA}
_SPEC: JsonObject = {"type": "object", "properties": {"user": TEXT, **_GROUPS}}
_USER: JsonObject = {"type": "object", "properties": {"username": TEXT, **_GROUPS}}
_EVENT: JsonObject = {
    "type": "object",
    "properties": {"user": _USER, "requestReceivedTimestamp": TEXT | {"format": "date-time"}},
    "required": ["requestReceivedTimestamp"],
}

router = APIRouter(tags=["Kubernetes"])


@router.post(
    AUTHORIZE,
    responses=described("Denied, or no opinion; never allowed.", SubjectAccessReview, errors=_ERRORS),
    openapi_extra=_object(review.V1, review.KIND, spec=_SPEC),
)
async def authorize(request: Request, services: ServicesDep, cluster_id: str) -> Response:
    """Decide whether a cluster accepts a credential.

    This is kube-apiserver's authorization webhook. The webhook denies X.509 credentials that are revoked or are for a
    different cluster.
    """
    return await handle_review(request, services, cluster_id)


@router.post(
    AUDIT_EVENTS,
    responses=described(
        "Accepted. Events with an invalid user or time are ignored.",
        KubernetesStatus,
        errors={status: text for status, text in _ERRORS.items() if status != TooLarge.status},
    ),
    openapi_extra=_object(audit_events.API_VERSION, "EventList", items={"type": "array", "items": _EVENT}),
)
async def receive_audit_events(request: Request, services: ServicesDep, cluster_id: str) -> Response:
    """Receive audit events, which report the use of credentials.

    This is kube-apiserver's audit webhook, for batches of any size.

    The webhook records when credentials were used, and which credentials are unknown or altered.
    """
    try:
        token = _token(request)
        webhook_config = await services.webhook.tokens.authenticate(cluster_id, token)
        _log_cluster(cluster_id)
        body = chunks(request, services.options.body_timeout)
        await services.webhook.audit_batches.receive(
            webhook_config, token_hash(token), body, context_of(request).origin
        )
    except Unavailable as failure:
        raise _without_retry(failure) from failure
    context_of(request).quiet = True
    return responses.json_response(_SUCCESS)


async def handle_review(request: Request, services: Services, cluster_id: str) -> Response:
    """Check a review's token, size and content, in this order. Then decide on the credential."""
    try:
        token = _token(request)
        tokens, seconds = services.webhook.tokens, services.options.body_timeout
        hashed = token_hash(token)
        last = tokens.last_valid(cluster_id, token)
        if last is None:
            await tokens.authenticate(cluster_id, token)
        _log_cluster(cluster_id)
        services.webhook.credential_usage.report_token_use(cluster_id, hashed)
        raw = await beginning(request, seconds, MAX_REVIEW)
        if len(raw) > MAX_REVIEW:
            return _too_large(request, raw, seconds)
        asked = review.parse(raw)
        if not asked.identity.may_be_denied:
            # This decision needs no database. An old API server asks about all callers, and callers without a
            # certificate must be served while the database is down.
            return _decided(request, asked, NO_OPINION)
        authorization, origin = services.webhook.authorization, context_of(request).origin
        webhook_config = last or await tokens.authenticate(cluster_id, token)
        if denial := authorization.remembered_denial(webhook_config, asked.identity, origin, hashed):
            return _decided(request, asked, denial)
        if last is not None:
            webhook_config = await tokens.authenticate(cluster_id, token)
        decision = await authorization.decide(webhook_config, asked.identity, origin, hashed)
    except WrongToken:
        services.webhook.credential_usage.report_refused_call(cluster_id)
        raise
    except Unavailable as failure:
        raise _without_retry(failure) from failure
    return _decided(request, asked, decision)


def _too_large(request: Request, beginning: bytes, seconds: float) -> Response:
    count_decision(TOO_LARGE)
    context_of(request).log_fields["denied"] = TOO_LARGE.outcome
    denial = review.denied(str(TOO_LARGE.reason), review.version_in(beginning))
    return EarlyResponse(denial, responses.JSON, seconds)


def _decided(request: Request, asked: review.Review, decision: Decision) -> Response:
    count_decision(decision)
    if decision.reason is None:
        # The most frequent response, up to thousands a second, so it is not logged at level info.
        context_of(request).quiet = True
        return responses.Rendered(review.NO_OPINION[asked.api_version], responses.JSON)
    context_of(request).log_fields["denied"] = decision.outcome
    return responses.Rendered(review.denied(decision.reason, asked.api_version), responses.JSON)


def _log_cluster(cluster_id: str) -> None:
    """Add the authenticated cluster to the log lines of its request, as audit events name clusters."""
    caller = f"cluster:{cluster_id}"
    log.set_caller(caller, caller)


def _token(request: Request) -> str:
    """Return the bearer token. Raises Unauthenticated if the request has no bearer token."""
    values = [value for name, value in request.scope["headers"] if name == b"authorization"]
    scheme, _, token = (values[0] if len(values) == 1 else b"").partition(b" ")
    if scheme.lower() != b"bearer":
        raise Unauthenticated("the request carries no bearer token")
    return token.decode("latin-1")


def _without_retry(failure: Unavailable) -> Unavailable:
    """Remove Retry-After: with this header, an API server would wait instead of applying its failurePolicy."""
    return Unavailable(failure.message, retry_after=None)
