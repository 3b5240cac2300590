"""Routes that manage access keys. Only for operators."""

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from clustercert.http.api.administration.changes import ResourceBody
from clustercert.http import responses
from clustercert.http.api import OWN
from clustercert.http.api.administration import changes, descriptions
from clustercert.http.api.administration.authorization import OperatorCall, OperatorChange
from clustercert.http.api.administration.directory_bodies import KEPT
from clustercert.http.api.administration.directory_names import DirectoryDep, DomainDep
from clustercert.http.openapi import json_body
from clustercert.http.paging import KeyPageDep, keyed_page_of_all
from clustercert.model import AccessKey, JsonObject, rfc3339
from clustercert.model.errors import NotFound

OF_USER = OWN + "/users/{name}/access-keys"
KEY = OWN + "/access-keys/{access_key}"


class NewKeyRequest(ResourceBody):
    """A new access key."""

    description: str = Field(default="", json_schema_extra={"maxLength": 255})


class KeyRequest(ResourceBody):
    """The wanted state of an access key."""

    enabled: bool = Field(
        default=True, description=f"Disabling deletes all temporary keys of the user. {KEPT}"
    )


class KeyBody(BaseModel):
    """An access key. Times are RFC 3339."""

    access_key: str
    user_id: str
    description: str
    enabled: bool
    created_at: str
    expires_at: str | None = Field(description="Null for a permanent key.")


class IssuedKeyBody(KeyBody):
    """A new access key with its secret."""

    secret_key: str | None


class KeyListBody(BaseModel):
    """A page of access keys, sorted by name."""

    access_keys: list[KeyBody]
    next: str | None = Field(description="The cursor of the next page; null on the last page.")


router = APIRouter(tags=["Administration"])


@router.get(OF_USER, responses=descriptions.listed(KeyListBody))
async def list_keys(
    call: OperatorCall, directory: DirectoryDep, name: str, domain: DomainDep, page: KeyPageDep
) -> Response:
    """List the access keys of a user. Includes temporary keys. Only for operators."""
    user = await directory.find_user(name, domain)
    keys = await call.services.identity.access_keys.of_user(user)
    return responses.private(keyed_page_of_all("access_keys", map(key_view, keys), page, "access_key"))


@router.post(
    OF_USER,
    status_code=201,
    responses=descriptions.issued(IssuedKeyBody),
    openapi_extra=json_body(NewKeyRequest.model_json_schema()),
)
async def create_key(
    change: OperatorChange, directory: DirectoryDep, name: str, domain: DomainDep
) -> Response:
    """Create an access key of a user. Only for operators."""
    change.check(None)
    user = await directory.find_user(name, domain)
    wanted, call = change.body(NewKeyRequest, None), change.call
    with change.transactions():
        issued = await call.services.identity.access_keys.create(
            user, description=wanted.description, actor=call.caller.actor
        )
    secret = None if change.dry_run else issued.secret
    return responses.json_response(key_view(issued.key) | {"secret_key": secret}, 201, responses.NO_STORE)


@router.get(KEY, responses=descriptions.one(KeyBody))
async def show_key(call: OperatorCall, access_key: str) -> Response:
    """Show an access key. Without its secret. Only for operators."""
    return changes.shown(key_view(await call.services.identity.access_keys.find(access_key)))


@router.put(
    KEY, responses=descriptions.replaced(KeyBody), openapi_extra=json_body(KeyRequest.model_json_schema())
)
async def put_key(change: OperatorChange, access_key: str) -> Response:
    """Enable or disable an access key. Only for operators."""
    keys = change.call.services.identity.access_keys

    async def save(before: AccessKey | None, current: JsonObject | None) -> AccessKey:
        if before is None:
            raise NotFound(f"There is no access key {access_key}.")
        wanted = change.body(KeyRequest, current)
        return await keys.update(before, enabled=wanted.enabled, actor=change.call.caller.actor)

    return await changes.put(change, lambda: keys.find(access_key), save, key_view)


@router.delete(KEY, status_code=204, responses=descriptions.deleted())
async def delete_key(change: OperatorChange, access_key: str) -> Response:
    """Delete an access key. Deletes all temporary keys of its user too. Only for operators."""
    keys = change.call.services.identity.access_keys

    async def remove(found: AccessKey) -> None:
        await keys.remove(found, actor=change.call.caller.actor)

    return await changes.delete(change, lambda: keys.find(access_key), remove, key_view)


def key_view(key: AccessKey) -> JsonObject:
    return {
        "access_key": key.id,
        "user_id": key.user_id,
        "description": key.description,
        "enabled": key.enabled,
        "created_at": rfc3339(key.created_at),
        "expires_at": rfc3339(key.expires_at) if key.expires_at is not None else None,
    }
