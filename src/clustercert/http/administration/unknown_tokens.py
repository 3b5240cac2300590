"""Routes for credentials that are in a cluster but not in the ledger. Only operators confirm their deletion."""

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from clustercert.http import responses
from clustercert.http.administration import changes
from clustercert.http.administration.changes import AdminCall, OperatorChange, ResourceBody
from clustercert.http.administration.clusters import CLUSTER
from clustercert.http.openapi import KIB, json_body
from clustercert.http.responses import ResponseBody

UNKNOWN = CLUSTER + "/unknown-credentials"

router = APIRouter(tags=["Administration"])


class UnknownCredentialsBody(ResponseBody):
    """Credentials in a cluster that are not in the ledger, and that the service does not delete by itself."""

    waiting: int = Field(description="The number of these credentials.")
    confirmed: int = Field(description="The number of credentials whose deletion an operator has confirmed.")


class ConfirmationRequest(ResourceBody):
    """A confirmation that the service may delete credentials."""

    count: int = Field(ge=0, le=1_000_000, description="The number of credentials that wait now.")


@router.get(UNKNOWN, responses=changes.one(UnknownCredentialsBody))
async def show_unknown_credentials(call: AdminCall, project_id: str, cluster: str) -> Response:
    """Show how many credentials of a cluster are not in the ledger and wait for a confirmation of their deletion.

    The credentials wait if there are more than ten, and if they are more than half of all credentials: the database
    may be an old copy. Only for project admins and operators.
    """
    services = call.services
    found = await services.clusters.find(project_id, cluster)
    return changes.shown(UnknownCredentialsBody.render(await services.unknown_tokens.status(found)))


@router.post(
    UNKNOWN,
    responses=changes.changed(UnknownCredentialsBody),
    openapi_extra=json_body(ConfirmationRequest, limit=KIB),
)
async def confirm_deletion(change: OperatorChange, project_id: str, cluster: str) -> Response:
    """Confirm that the service may delete the credentials that are not in the ledger. Only for operators.

    `count` must be the number that waits. The service deletes the credentials within about a minute.
    """
    services = change.call.services
    found = await services.clusters.find(project_id, cluster)
    change.check(UnknownCredentialsBody.render(await services.unknown_tokens.status(found)))
    sent = change.body(ConfirmationRequest, None)
    with change.transactions():
        status = await services.unknown_tokens.confirm(found, sent.count, actor=change.call.caller.actor)
    return responses.private(UnknownCredentialsBody.render(status))
