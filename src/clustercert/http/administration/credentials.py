"""Routes that manage access keys of users (only for operators) and webhook tokens of clusters."""

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from clustercert.http import IN_PROJECT, OWN, responses
from clustercert.http.administration import changes
from clustercert.http.administration.changes import (
    AdminCall,
    AdminChange,
    OperatorCall,
    OperatorChange,
    ResourceBody,
)
from clustercert.http.administration.directory import KEPT, DirectoryDep, DomainDep
from clustercert.http.openapi import KIB, json_body
from clustercert.http.paging import KeyPageDep, PageBody, sorted_page
from clustercert.http.responses import ResponseBody, Time
from clustercert.kubernetes.webhook.tokens import WebhookTokens
from clustercert.model import AccessKey, Cluster, JsonObject
from clustercert.model.errors import NotFound
from clustercert.store.clusters.registry import WebhookToken

OF_USER = OWN + "/users/{name}/access-keys"
KEY = OWN + "/access-keys/{access_key}"


class NewKeyRequest(ResourceBody):
    """A new access key."""

    description: str = Field(default="", json_schema_extra={"maxLength": 255})


class KeyRequest(ResourceBody):
    """The desired state of an access key."""

    enabled: bool = Field(
        default=True, description=f"Disabling deletes all temporary keys of the user. {KEPT}"
    )


class KeyBody(ResponseBody):
    """An access key. Times are in the format of RFC 3339."""

    access_key: str = Field(validation_alias="id")
    user_id: str
    description: str
    enabled: bool
    created_at: Time
    expires_at: Time | None = Field(description="Null for a permanent key.")


class IssuedKeyBody(KeyBody):
    """A new access key with its secret."""

    secret_key: str | None


class KeyListBody(PageBody):
    """A page of access keys, sorted by `access_key`."""

    access_keys: list[KeyBody]


router = APIRouter(tags=["Administration"])


@router.get(OF_USER, responses=changes.listed(KeyListBody))
async def list_keys(
    call: OperatorCall, directory: DirectoryDep, name: str, domain: DomainDep, page: KeyPageDep
) -> Response:
    """List the access keys of a user. Includes temporary keys. Only for operators."""
    user = await directory.find_user(name, domain)
    keys = await call.services.identity.access_keys.queries.keys_of_user(user.id)
    return responses.private(sorted_page("access_keys", map(KeyBody.render, keys), page, "access_key"))


@router.post(
    OF_USER,
    status_code=201,
    responses=changes.issued(IssuedKeyBody),
    openapi_extra=json_body(NewKeyRequest, limit=8 * KIB),
)
async def create_key(
    change: OperatorChange, directory: DirectoryDep, name: str, domain: DomainDep
) -> Response:
    """Create an access key for a user. Only for operators."""
    change.check(None)
    user = await directory.find_user(name, domain)
    sent, call = change.body(NewKeyRequest, None), change.call
    with change.transactions():
        issued = await call.services.identity.access_keys.create(
            user, description=sent.description, actor=call.caller.actor
        )
    secret = None if change.dry_run else issued.secret
    return responses.json_response(
        KeyBody.render(issued.key) | {"secret_key": secret}, 201, responses.NO_STORE
    )


@router.get(KEY, responses=changes.one(KeyBody))
async def show_key(call: OperatorCall, access_key: str) -> Response:
    """Show an access key without its secret. Only for operators."""
    return changes.shown(KeyBody.render(await call.services.identity.access_keys.find(access_key)))


@router.put(KEY, responses=changes.replaced(KeyBody), openapi_extra=json_body(KeyRequest, limit=8 * KIB))
async def put_key(change: OperatorChange, access_key: str) -> Response:
    """Enable or disable an access key. Only for operators."""
    keys = change.call.services.identity.access_keys

    async def save(before: AccessKey | None, current: JsonObject | None) -> AccessKey:
        if before is None:
            raise NotFound(f"There is no access key {access_key}.")
        enabled = change.body(KeyRequest, current).enabled
        return await keys.update(before, enabled=enabled, actor=change.call.caller.actor)

    return await changes.put(change, lambda: keys.find(access_key), save, KeyBody.render)


@router.delete(KEY, status_code=204, responses=changes.deleted())
async def delete_key(change: OperatorChange, access_key: str) -> Response:
    """Delete an access key. Also deletes all temporary keys of the key's user. Only for operators."""
    keys = change.call.services.identity.access_keys

    async def remove(found: AccessKey) -> None:
        await keys.remove(found, actor=change.call.caller.actor)

    return await changes.delete(change, lambda: keys.find(access_key), remove, KeyBody.render)


TOKENS = IN_PROJECT + "/clusters/{cluster}/webhook-tokens"


class WebhookTokenBody(ResponseBody):
    """A webhook token, without its secret. Times are in the format of RFC 3339."""

    id: str
    cluster_id: str
    created_at: Time
    last_asked_at: Time | None = Field(
        description="When an API server last requested an authorization with the token, to the minute."
    )
    last_events_at: Time | None = Field(
        description="When the cluster's API servers last sent audit events, to the minute."
    )


class IssuedTokenBody(WebhookTokenBody):
    """A new webhook token."""

    token: str | None


class WebhookTokenListBody(PageBody):
    """A page of webhook tokens, sorted by id. A cluster has at most two webhook tokens."""

    webhook_tokens: list[WebhookTokenBody]


@router.get(TOKENS, responses=changes.listed(WebhookTokenListBody))
async def list_tokens(call: AdminCall, project_id: str, cluster: str, page: KeyPageDep) -> Response:
    """List the webhook tokens of a cluster. Only for project admins and operators."""
    owner = await call.services.clusters.find(project_id, cluster)
    found = await call.services.webhook.tokens.queries.tokens_of_cluster(owner.id)
    return responses.private(sorted_page("webhook_tokens", map(WebhookTokenBody.render, found), page))


@router.get(TOKENS + "/{token_id}", responses=changes.one(WebhookTokenBody))
async def show_token(call: AdminCall, project_id: str, cluster: str, token_id: str) -> Response:
    """Show a webhook token, without its secret. Only for project admins and operators."""
    owner = await call.services.clusters.find(project_id, cluster)
    return changes.shown(WebhookTokenBody.render(await _find(call.services.webhook.tokens, owner, token_id)))


@router.post(TOKENS, status_code=201, responses=changes.issued(IssuedTokenBody))
async def create_token(change: AdminChange, project_id: str, cluster: str) -> Response:
    """Create a webhook token for a cluster. The request has no body. Only for project admins and operators."""
    change.check(None)
    change.require_no_body()
    owner = await change.call.services.clusters.find(project_id, cluster)
    with change.transactions():
        issued = await change.call.services.webhook.tokens.create(owner, actor=change.call.caller.actor)
    text = None if change.dry_run else issued.text
    return responses.json_response(
        WebhookTokenBody.render(issued.token) | {"token": text}, 201, responses.NO_STORE
    )


@router.delete(TOKENS + "/{token_id}", status_code=204, responses=changes.deleted())
async def delete_token(change: AdminChange, project_id: str, cluster: str, token_id: str) -> Response:
    """Remove a webhook token.

    API servers that still use the token receive errors. Only for project admins and operators.
    """
    tokens = change.call.services.webhook.tokens
    owner = await change.call.services.clusters.find(project_id, cluster)

    async def remove(found: WebhookToken) -> None:
        await tokens.remove(owner, found.id, actor=change.call.caller.actor)

    return await changes.delete(
        change, lambda: _find(tokens, owner, token_id), remove, WebhookTokenBody.render
    )


async def _find(tokens: WebhookTokens, owner: Cluster, token_id: str) -> WebhookToken:
    for each in await tokens.queries.tokens_of_cluster(owner.id):
        if each.id == token_id:
            return each
    raise NotFound("The cluster has no such webhook token. List the cluster's tokens to see the ids.")
