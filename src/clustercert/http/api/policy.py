"""Routes of the policy."""

from fastapi import APIRouter
from starlette.responses import Response

from clustercert.http import query, responses
from clustercert.http.api import OWN
from clustercert.http.api import policy_bodies as bodies
from clustercert.http.dependencies import CallDep
from clustercert.http.openapi import described
from clustercert.model.errors import InvalidRequest

router = APIRouter(tags=["Policy"])


@router.get(
    OWN + "/policy/explain",
    responses=described("The explained decision.", bodies.ExplanationBody),
    openapi_extra=query.described(bodies.EXPLAIN),
)
async def explain(call: CallDep) -> Response:
    """Explain what the policy decides on a request for a certificate.

    Signs and records nothing. Users may ask about themselves, project admins about users with a role in their project,
    operators about everybody. Only operators see all rules.
    """
    values = query.parsed(call.request.query_params, bodies.EXPLAIN, others=())
    if "cluster" not in values:
        raise InvalidRequest("cluster: send the id of a cluster.")
    asked = bodies.question(values, call.services.options.max_duration)
    explained = await call.services.explanations.explain(
        call.caller, values["cluster"], values.get("user"), asked
    )
    return responses.private(bodies.explanation_body(explained))
