"""What kube-apiservers ask and tell: SubjectAccessReview in and out, audit events in. Translate and stop.

Whoever comes without a token of the cluster gets nothing read. An answer that isn't one leaves the decision to the
API server's failurePolicy, which may well be to let in: so nothing that a client of that API server can bring about is
answered with an error.
"""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from clustercert.errors import TooLarge, Unauthenticated, Unavailable
from clustercert.model import JsonObject
from clustercert.web import bodies, render, webhook_bodies
from clustercert.web.chunks import chunks
from clustercert.web.deps import Services, ServicesDep, origin, received
from clustercert.web.direct import DirectRoute
from clustercert.webhook import audit_events, review
from clustercert.webhook.authorize import TOO_LARGE, Decision, counted
from clustercert.webhook.tokens import hash_of

CLUSTER = "/clustercert/v1/kubernetes/clusters/{cluster_id}"
AUTHORIZE = f"{CLUSTER}/authorize"
AUDIT_EVENTS = f"{CLUSTER}/audit-events"

# A review is about a kilobyte, and some with a very long selector. But whoever lists with one as long as a header
# block may be, about a megabyte, has the API server write more than thirty of them here: such a review is read to its
# end and denied.
MAX_REVIEW = 256 * 1024
MAX_READ = 64 * 1024 * 1024

_SUCCESS: JsonObject = {"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success"}

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": bodies.ErrorBody, "description": description}
    for status, description in {
        400: "Not the document that is taken here.",
        401: "No token of this cluster, or no such cluster.",
        408: "The request's body did not arrive in time.",
        413: "The request's body is larger than is read.",
        500: "Internal error.",
        503: "The database does not answer. Nothing is decided: the API server's failurePolicy is.",
    }.items()
}


def _documented(kind: str, properties: JsonObject, required: list[str]) -> dict[str, Any]:
    schema = {"title": kind, "type": "object", "properties": properties, "required": required}
    return {
        "security": [{"bearer": []}],
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
    }


def _constant(value: str) -> JsonObject:
    return {"type": "string", "const": value}


_STRINGS: JsonObject = {"type": "array", "items": {"type": "string"}}
_EXTRA: JsonObject = {"type": "object", "additionalProperties": _STRINGS}
_SPEC: JsonObject = {
    "type": "object",
    "properties": {"user": {"type": "string"}, "groups": _STRINGS, "extra": _EXTRA},
}
_USER: JsonObject = {
    "type": "object",
    "properties": {"username": {"type": "string"}, "groups": _STRINGS, "extra": _EXTRA},
}
_EVENT: JsonObject = {
    "type": "object",
    "properties": {
        "user": _USER,
        "requestReceivedTimestamp": {"type": "string", "format": "date-time"},
    },
    "required": ["requestReceivedTimestamp"],
}

router = APIRouter(tags=["Kubernetes"])


@router.post(
    AUTHORIZE,
    summary="Whether a cluster is to honour a credential",
    responses={
        200: {
            "model": webhook_bodies.SubjectAccessReview,
            "description": "Denied, or no opinion; never allowed.",
        },
        **_ERRORS,
    },
    openapi_extra=_documented(
        review.KIND,
        {"apiVersion": _constant(review.API_VERSION), "kind": _constant(review.KIND), "spec": _SPEC},
        ["apiVersion", "kind", "spec"],
    ),
)
async def authorize(request: Request, services: ServicesDep, cluster_id: str) -> Response:
    """A kube-apiserver's authorization webhook: denied where the X.509 credential is revoked or another cluster's."""
    return await answer_review(request, services, cluster_id)


@router.post(
    AUDIT_EVENTS,
    summary="Tell which credentials a cluster saw in use",
    responses={
        200: {
            "model": webhook_bodies.KubernetesStatus,
            "description": "Taken note of, apart from events whose user or time cannot be read.",
        },
        **{status: body for status, body in _ERRORS.items() if status != TooLarge.status},
    },
    openapi_extra=_documented(
        "EventList",
        {
            "apiVersion": _constant(audit_events.API_VERSION),
            "kind": _constant("EventList"),
            "items": {"type": "array", "items": _EVENT},
        },
        ["apiVersion", "kind", "items"],
    ),
)
async def take_audit_events(request: Request, services: ServicesDep, cluster_id: str) -> Response:
    """A kube-apiserver's audit webhook, for batches of any size.

    What is kept are the times of use, and what should be looked at.
    """
    try:
        gate = await services.webhook.tokens.admit(cluster_id, _token(request))
        body = chunks(request, services.options.body_timeout)
        await services.webhook.audit_batches.take(gate, body, origin(request))
    except Unavailable as failure:
        raise _at_once(failure) from failure
    request.scope["clustercert.quiet"] = True
    return render.json_response(_SUCCESS)


async def answer_review(request: Request, services: Services, cluster_id: str) -> Response:
    """Token, size, meaning, then the use case: in this order."""
    try:
        token = _token(request)
        gate = await services.webhook.tokens.admit(cluster_id, token)
        services.webhook.sightings.note_asking(hash_of(token))
        raw = await received(request, services.options.body_timeout, keep=MAX_REVIEW, read=MAX_READ)
        if raw is None:
            return _answered(request, TOO_LARGE)
        who = review.parse(raw)
        decision = await services.webhook.authorization.decide(gate, who, origin(request))
    except Unavailable as failure:
        raise _at_once(failure) from failure
    return _answered(request, decision)


def direct(services: Callable[[], Services]) -> DirectRoute:
    """As `clustercert.direct`."""

    async def authorize(request: Request) -> Response:
        return await answer_review(request, services(), request.path_params["cluster_id"])

    return DirectRoute(AUTHORIZE, authorize, methods=["POST"])


def _answered(request: Request, decision: Decision) -> Response:
    counted(decision)
    if decision.reason is None:
        # Thousands a second say nothing.
        request.scope["clustercert.quiet"] = True
        return render.Rendered(review.NO_OPINION, render.JSON)
    request.scope["clustercert.log"] = {"denied": decision.outcome}
    return render.Rendered(review.denied(decision.reason), render.JSON)


def _token(request: Request) -> str:
    """What the request shows. Raises Unauthenticated."""
    values = [value for name, value in request.scope["headers"] if name == b"authorization"]
    scheme, _, token = (values[0] if len(values) == 1 else b"").partition(b" ")
    if scheme.lower() != b"bearer":
        raise Unauthenticated("there is no bearer token")
    return token.decode("latin-1")


def _at_once(failure: Unavailable) -> Unavailable:
    """Without Retry-After: an API server would wait for so long, instead of doing what its failurePolicy says."""
    return Unavailable(failure.message, retry_after=None)
