"""Routes that manage the webhook tokens of clusters, for operators and admins of their project."""

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from clustercert.http import responses
from clustercert.http.api import IN_PROJECT
from clustercert.http.api.administration import changes, descriptions
from clustercert.http.api.administration.authorization import AdminCall, AdminChange
from clustercert.http.paging import KeyPageDep, keyed_page_of_all
from clustercert.kubernetes.webhook.tokens import WebhookTokens
from clustercert.model import Cluster, JsonObject, rfc3339
from clustercert.model.errors import NotFound
from clustercert.store.webhook_tokens import WebhookToken

TOKENS = IN_PROJECT + "/clusters/{cluster}/webhook-tokens"


class WebhookTokenBody(BaseModel):
    """A webhook token, without its secret. Times are RFC 3339."""

    id: str
    cluster_id: str
    created_at: str
    last_asked_at: str | None = Field(description="When an API server last used it, to the minute.")
    last_events_at: str | None = Field(
        description="When the cluster's API servers last sent audit events, to the minute."
    )


class IssuedTokenBody(WebhookTokenBody):
    """A new webhook token."""

    token: str | None


class WebhookTokenListBody(BaseModel):
    """A page of webhook tokens, sorted by id. A cluster has at most two."""

    webhook_tokens: list[WebhookTokenBody]
    next: str | None = Field(description="The cursor of the next page; null on the last page.")


router = APIRouter(tags=["Administration"])


@router.get(TOKENS, responses=descriptions.listed(WebhookTokenListBody))
async def list_tokens(call: AdminCall, project_id: str, cluster: str, page: KeyPageDep) -> Response:
    """List the webhook tokens of a cluster. Only for project admins and operators."""
    owner = await call.services.clusters.find(project_id, cluster)
    found = await call.services.webhook.tokens.of_cluster(owner.id)
    return responses.private(keyed_page_of_all("webhook_tokens", map(token_view, found), page))


@router.get(TOKENS + "/{token_id}", responses=descriptions.one(WebhookTokenBody))
async def show_token(call: AdminCall, project_id: str, cluster: str, token_id: str) -> Response:
    """Show a webhook token, without its secret. Only for project admins and operators."""
    owner = await call.services.clusters.find(project_id, cluster)
    return changes.shown(token_view(await _find(call.services.webhook.tokens, owner, token_id)))


@router.post(TOKENS, status_code=201, responses=descriptions.issued(IssuedTokenBody))
async def create_token(change: AdminChange, project_id: str, cluster: str) -> Response:
    """Create a webhook token of a cluster. The request has no body. Only for project admins and operators."""
    change.check(None)
    change.require_no_body()
    owner = await change.call.services.clusters.find(project_id, cluster)
    with change.transactions():
        issued = await change.call.services.webhook.tokens.create(owner, actor=change.call.caller.actor)
    text = None if change.dry_run else issued.text
    return responses.json_response(token_view(issued.token) | {"token": text}, 201, responses.NO_STORE)


@router.delete(TOKENS + "/{token_id}", status_code=204, responses=descriptions.deleted())
async def delete_token(change: AdminChange, project_id: str, cluster: str, token_id: str) -> Response:
    """Remove a webhook token. API servers that still use it receive errors. Only for project admins and operators."""
    tokens = change.call.services.webhook.tokens
    owner = await change.call.services.clusters.find(project_id, cluster)

    async def remove(found: WebhookToken) -> None:
        await tokens.remove(owner, found.id, actor=change.call.caller.actor)

    return await changes.delete(change, lambda: _find(tokens, owner, token_id), remove, token_view)


async def _find(tokens: WebhookTokens, owner: Cluster, token_id: str) -> WebhookToken:
    for each in await tokens.of_cluster(owner.id):
        if each.id == token_id:
            return each
    raise NotFound("The cluster has no such webhook token. List them to see their ids.")


def token_view(token: WebhookToken) -> JsonObject:
    return {
        "id": token.id,
        "cluster_id": token.cluster_id,
        "created_at": rfc3339(token.created_at),
        "last_asked_at": rfc3339(token.last_asked_at) if token.last_asked_at is not None else None,
        "last_events_at": rfc3339(token.last_events_at) if token.last_events_at is not None else None,
    }
