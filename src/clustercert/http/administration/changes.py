"""Changes to the resources of the administration API: preconditions, dry runs and concurrent requests.

A PUT creates a resource or replaces all of its fields, but keeps `enabled` if the request does not contain this field.
Repeating a PUT changes nothing and records no event. If another request changes the resource between the PUT's read and
write, the service repeats the PUT with the new state.
"""

import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, Header, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from clustercert.certificates.lost_roles import LostCertificates
from clustercert.http import responses
from clustercert.http.body import json_object, require_json, validated
from clustercert.http.context import context_of
from clustercert.http.dependencies import Call, CallDep
from clustercert.http.openapi import ERRORS, described
from clustercert.http.responses import ResponseBody, Time
from clustercert.model import JsonObject
from clustercert.model.errors import (
    ConcurrentChange,
    Conflict,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    Unavailable,
)
from clustercert.model.rights import require_admin, require_operator
from clustercert.observability import canonical_json
from clustercert.store.certificates.access_controls import LostRole
from clustercert.store.engine.transaction import rolling_back

_ERRORS = ERRORS | {404: "There is no such object, or the caller has no access to it."}
_CHANGE_ERRORS = _ERRORS | {
    409: "Other objects depend on the object, or another request is changing it.",
    412: "The object is not in the state that If-Match or If-None-Match requires.",
}
_ETAG = {"ETag": "A tag that identifies the object's state. Send it in If-Match."}

Described = dict[int | str, dict[str, Any]]


def listed(model: type[BaseModel]) -> Described:
    return described("A page of the list.", model, errors=_ERRORS)


def one(model: type[BaseModel], more_errors: Mapping[int, str] | None = None) -> Described:
    return described("The object.", model, headers=_ETAG, errors={**_ERRORS, **(more_errors or {})})


def replaced(model: type[BaseModel]) -> Described:
    """Describe the responses of a PUT that creates or replaces an object, for the API documentation."""
    created = described("Created.", model, status=201, headers=_ETAG, errors={})
    return (
        described("Changed, or already in this state.", model, headers=_ETAG, errors=_CHANGE_ERRORS) | created
    )


def issued(model: type[BaseModel]) -> Described:
    """Describe the responses of a POST that creates a secret, for the API documentation."""
    text = "Created. Only this response contains the secret. The response to a dry run has no secret."
    return described(text, model, status=201, errors=_CHANGE_ERRORS)


def created(model: type[BaseModel]) -> Described:
    return described("Created.", model, status=201, errors=_CHANGE_ERRORS)


def changed(model: type[BaseModel]) -> Described:
    return described("Changed, or already in this state.", model, errors=_CHANGE_ERRORS)


def deleted() -> Described:
    return done("Deleted.")


def done(text: str) -> Described:
    """Describe a response without a body, for the API documentation."""
    return described(text, status=204, errors=_CHANGE_ERRORS)


M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

ATTEMPTS = 10
_TAG_DIGITS = 32
_TIME = "_at"
_ENABLED = "enabled"


class ResourceBody(BaseModel):
    """A request body with all changeable fields of a resource. Types are strict, and unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """A request that changes a resource.

    Attributes:
        if_match: entity tags, one of which the resource must have; `None` to accept any state of the resource.
        must_be_new: whether the resource must not exist yet.
        dry_run: whether to check everything and change nothing.
    """

    call: Call
    if_match: frozenset[str] | None
    must_be_new: bool
    dry_run: bool

    def check(self, current: JsonObject | None) -> None:
        """Raise PreconditionFailed if the resource (`None` if it is missing) is not in the required state."""
        if self.must_be_new and current is not None:
            raise PreconditionFailed("If-None-Match: the object exists already.")
        if self.if_match is None:
            return
        if current is None:
            raise PreconditionFailed("If-Match: the object does not exist.")
        if not self.if_match & {"*", entity_tag(current)}:
            raise PreconditionFailed(
                "If-Match: the object was changed. Read the object again, and send the new ETag."
            )

    def body(self, shape: type[M], current: JsonObject | None) -> M:
        """Validate the body. Raises InvalidRequest.

        As in Kubernetes, the body may contain fields that can't be changed, such as names and ids, with their current
        values. Times that the service sets are ignored, because they may have changed since the client read the
        resource. Without `enabled`, a disabled resource stays disabled.
        """
        require_json(self.call.request)
        sent = json_object(self.call.body)
        for name in (current or {}).keys() & sent.keys() - shape.model_fields.keys():
            if sent.pop(name) != (current or {})[name] and not name.endswith(_TIME):
                raise InvalidRequest(
                    f"{name}: this field can't be changed. Send its present value, or leave the field out."
                )
        if current is not None and _ENABLED in shape.model_fields:
            sent.setdefault(_ENABLED, current[_ENABLED])
        return validated(sent, shape)

    def optional_body(self, shape: type[M]) -> M:
        """Validate the body. An empty body has the defaults of all fields. Raises InvalidRequest."""
        return self.body(shape, None) if self.call.body.strip() else shape()

    def require_unchanged(self, current: JsonObject | None) -> None:
        """Raise InvalidRequest if the body would change the resource. An empty body is valid."""
        if self.call.body.strip():
            self.body(ResourceBody, current)

    def require_no_body(self) -> None:
        """Raise InvalidRequest if the request has a body other than an empty object."""
        if self.call.body.strip() not in {b"", b"{}"}:
            raise InvalidRequest("The body must be empty, or an empty JSON object.")

    def transactions(self) -> contextlib.AbstractContextManager[None]:
        """Return the context in which the change must run. In a dry run, the context rolls all transactions back."""
        return rolling_back() if self.dry_run else contextlib.nullcontext()


async def change(
    call: CallDep,
    dry_run: Annotated[
        Literal["All"] | None,
        Query(
            alias="dryRun",
            description="`All`: check everything, and return the result without changing anything.",
        ),
    ] = None,
    if_match: Annotated[
        str | None, Header(alias="If-Match", description="Change the object only if it has this ETag.")
    ] = None,
    if_none_match: Annotated[
        str | None,
        Header(
            alias="If-None-Match", description="`*`: create the object, but don't change an existing object."
        ),
    ] = None,
) -> ChangeRequest:
    """Parse the preconditions. Raises InvalidRequest."""
    if if_none_match not in {None, "*"}:
        raise InvalidRequest("If-None-Match: must be *.")
    tags = None if if_match is None else frozenset(tag.strip() for tag in if_match.split(","))
    return ChangeRequest(call, tags, if_none_match is not None, dry_run is not None)


ChangeDep = Annotated[ChangeRequest, Depends(change)]


def entity_tag(view: JsonObject) -> str:
    """Return the strong entity tag for this state of a resource."""
    digest = hashlib.sha256(canonical_json.dumps(view, sort_names=True)).hexdigest()
    return f'"{digest[:_TAG_DIGITS]}"'


def shown(view: JsonObject, status: int = 200) -> Response:
    """Return the response with a resource and its ETag."""
    return responses.json_response(view, status, {**responses.NO_STORE, "ETag": entity_tag(view)})


async def put(
    change: ChangeRequest,
    find: Callable[[], Awaitable[T]],
    save: Callable[[T | None, JsonObject | None], Awaitable[T]],
    view: Callable[[T], JsonObject],
) -> Response:
    """Create or replace a resource.

    Args:
        find: returns the resource, or raises NotFound.
        save: creates or changes the resource, given the current resource and its JSON object; both arguments are `None`
            if the resource does not exist.
    """
    for attempt in range(1, ATTEMPTS + 1):
        before = await _existing(find)
        current = view(before) if before is not None else None
        change.check(current)
        try:
            with change.transactions():
                after = await save(before, current)
        except Conflict as conflict:
            # Another request may have created or changed the resource at the same time.
            if attempt == ATTEMPTS or not (before is None or isinstance(conflict, ConcurrentChange)):
                raise
        else:
            return shown(view(after), 200 if before is not None else 201)
    raise ConcurrentChange


async def delete(
    change: ChangeRequest,
    find: Callable[[], Awaitable[T]],
    remove: Callable[[T], Awaitable[None]],
    view: Callable[[T], JsonObject],
) -> Response:
    """Delete a resource. `find` raises NotFound if the resource does not exist."""
    for attempt in range(1, ATTEMPTS + 1):
        before = await find()
        change.check(view(before))
        try:
            with change.transactions():
                await remove(before)
        except ConcurrentChange:
            if attempt == ATTEMPTS:
                raise
        else:
            break
    return Response(status_code=204)


class LostCertificatesBody(ResponseBody):
    """The valid certificates of users who lost a role in some projects, for the clusters of these projects.

    The certificates stay valid until they expire, unless the request revoked them. Users who have another role in a
    project are counted too.
    """

    certificates: int | None = Field(
        description="How many certificates were valid before the request; null if counting them took too long."
    )
    users: int | None = Field(description="How many users have these certificates.")
    clusters: int | None = Field(description="Number of clusters for which these certificates were issued.")
    until: Time | None = Field(
        description="When the last of these certificates expires; null if there are none."
    )
    complete: bool = Field(
        description="False if the users may have more certificates than are counted. Such certificates can't"
        " be revoked at once."
    )


_UNKNOWN = LostCertificatesBody(certificates=None, users=None, clusters=None, until=None, complete=False)

Revoke = Annotated[
    Literal["true"] | None,
    Query(
        description="`true`: also revoke the certificates. The request then takes more than a second. If the"
        " certificates can't be counted, nothing is changed."
    ),
]


def role_lost() -> Described:
    """Describe the response of a DELETE after which users have lost a role."""
    return described(
        "Deleted. The answer counts the certificates of the users who lost the role.",
        LostCertificatesBody,
        errors=_CHANGE_ERRORS,
    )


@dataclass(frozen=True, slots=True)
class RoleLoss:
    """A DELETE of a group, of a membership or of a role assignment in a project, which takes a role from users.

    Attributes:
        lost: the lost role. If only `group_id` is set, the group itself is deleted.
        note: the note of the revocations.
        revoke: whether to revoke the users' certificates.
    """

    change: ChangeRequest
    lost: LostRole
    note: str
    revoke: bool

    async def carry_out(self, delete: Callable[[], Awaitable[Response]]) -> Response:
        """Delete the object, and return the response that counts the users' certificates."""
        if self.revoke:
            return responses.private(LostCertificatesBody.render(await self._revoke_and(delete)))
        # Count before the deletion, because a deleted group has no members. A count that takes too long does not
        # prevent the deletion.
        counted = _UNKNOWN.model_dump()
        with contextlib.suppress(Unavailable):
            lost_roles = self.change.call.services.revocation.lost_roles
            counted = LostCertificatesBody.render(await lost_roles.count(self.lost))
        await delete()
        return responses.private(counted)

    async def _revoke_and(self, delete: Callable[[], Awaitable[Response]]) -> LostCertificates:
        """Revoke the certificates, and then delete. Returns the count of the certificates.

        Raises Conflict or Unavailable, and then deletes nothing, if the certificates are too many.
        """
        call, lost_roles = self.change.call, self.change.call.services.revocation.lost_roles
        # Do not revoke certificates if the deletion is going to be refused.
        with rolling_back():
            await delete()
        lost = self.lost
        if lost.user_ids is None and lost.project_ids is None and lost.group_id is not None:
            lost = await lost_roles.of_deleted_group(lost.group_id)
        live = await lost_roles.revocable(lost)
        if not self.change.dry_run:
            await lost_roles.revoke(live, self.note, actor=call.caller.actor)
            await delete()
            context_of(call.request).extend_deadline()
            await lost_roles.revoke_again(lost, self.note, actor=call.caller.actor)
        return LostCertificates.count(live)


async def _existing(find: Callable[[], Awaitable[T]]) -> T | None:
    try:
        return await find()
    except NotFound:
        return None


async def operator_call(call: CallDep) -> Call:
    """Return the authenticated request if the caller is an operator. Else raises Forbidden."""
    require_operator(call.caller)
    return call


OperatorCall = Annotated[Call, Depends(operator_call)]


async def operator_change(_operator: OperatorCall, change: ChangeDep) -> ChangeRequest:
    """Return the requested change if the caller is an operator.

    Raises Forbidden, or InvalidRequest for invalid preconditions.
    """
    return change


OperatorChange = Annotated[ChangeRequest, Depends(operator_change)]


async def admin_call(call: CallDep, project_id: str) -> Call:
    """Return the authenticated request if the caller is an operator or an admin of the project.

    Else raises NotFound or Forbidden.
    """
    require_admin(call.caller, project_id)
    return call


AdminCall = Annotated[Call, Depends(admin_call)]


async def admin_change(_admin: AdminCall, change: ChangeDep) -> ChangeRequest:
    """Return the requested change if the caller is an operator or an admin of the project.

    Raises NotFound, Forbidden, or InvalidRequest for invalid preconditions.
    """
    return change


AdminChange = Annotated[ChangeRequest, Depends(admin_change)]
