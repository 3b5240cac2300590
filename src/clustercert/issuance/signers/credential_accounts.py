"""Creates and deletes the service account of one credential, its token and its bindings in a cluster.

Source: Kubernetes documentation, "Managing Service Accounts" and "Using RBAC Authorization"; measured at 1.36.
"""

import asyncio
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from clustercert.issuance.signers.account_tokens import SHORTEST, read_claims, request_token
from clustercert.kube_api import UNEXPECTED_RESPONSE, ApiServerRefused, KubeApi, TooManyPages, pages, segment
from clustercert.model import JsonObject
from clustercert.model.errors import ClustercertError, RemoteFailed, Unavailable
from clustercert.model.group_roles import RoleGrant
from clustercert.model.issuance import IssuedToken
from clustercert.model.kubernetes import SERVICE_ACCOUNT_PREFIX, USERS_NAMESPACE
from clustercert.model.token_objects import (
    ACCOUNTS_PATH,
    CLUSTER_ROLE_BINDINGS_PATH,
    TokenObjects,
    account_number,
    binding_number,
    bindings_path,
    role_bindings_path,
    selector,
)

logger = structlog.get_logger()

# Limited, because RBAC in the API server reads all bindings for each request.
MAX_ACCOUNTS = 20_000
"""The maximum number of credentials that are tokens in one cluster."""

# How long a count is used. The count lacks later credentials of other processes, so the limit is not exact.
COUNT_SECONDS = 60.0
# The largest difference between the clocks of this service and of a cluster.
MAX_CLOCK_DIFFERENCE = timedelta(minutes=5)

_CONFLICT = 409
_MAX_OBJECT_BYTES = 64 * 1024
_MAX_LIST_BYTES = 1024 * 1024
_MAX_UID = 128
_MAX_LISTED = 50
# Others may create objects with the labels of a credential in their namespaces.
_MAX_PAGES = 20
_MAX_CALLS = 8
_CLOSE_SECONDS = 5.0


@dataclass(slots=True)
class CredentialAccounts:
    """Creates service accounts in one cluster, over one connection."""

    cluster_id: str
    _count: int = 0
    _counted_until: float = 0.0
    _undoing: set[asyncio.Task[None]] = field(default_factory=set)

    async def create(
        self, api: KubeApi, objects: TokenObjects, roles: Sequence[RoleGrant], now: datetime
    ) -> IssuedToken:
        """Create an account, its token, and then its bindings. So a crash can leave only a token without rights.

        After a failure or a cancellation, deletes in the background what was created. Raises ApiServerRefused,
        RemoteFailed or Unavailable.
        """
        await self._require_room(api)
        created: list[str] = []
        try:
            uid = await _create(api, ACCOUNTS_PATH, objects.account_document(), created)
            lifetime = max(objects.not_after - now, SHORTEST)
            text = await request_token(api, USERS_NAMESPACE, objects.account, lifetime)
            token = _checked_token(text, objects.account, uid, lifetime, now)
            for role, document in zip(roles, objects.binding_documents(roles), strict=True):
                await _create(api, bindings_path(role), document, created)
        except BaseException:
            if created:
                self._undo_later(api, created)
            raise
        self._count += 1
        return token

    async def close(self) -> None:
        """Wait for the deletions that are under way, for at most a few seconds."""
        if self._undoing:
            _, late = await asyncio.wait(self._undoing, timeout=_CLOSE_SECONDS)
            for task in late:
                task.cancel()

    async def _require_room(self, api: KubeApi) -> None:
        """Raise Unavailable if the cluster has too many accounts.

        Counts the accounts at most once a minute. Lists only one account: the API server adds the number of the other
        accounts.
        """
        if (started := time.monotonic()) >= self._counted_until:
            found = await api.get(ACCOUNTS_PATH, {"limit": "1"}, max_bytes=_MAX_LIST_BYTES)
            metadata = found.get("metadata")
            others = metadata.get("remainingItemCount") if isinstance(metadata, dict) else None
            self._count = len(_items(found)) + (others if isinstance(others, int) else 0)
            self._counted_until = started + COUNT_SECONDS
        if self._count >= MAX_ACCOUNTS:
            raise Unavailable(
                f"This cluster has {self._count} service accounts of credentials, and at most {MAX_ACCOUNTS} are"
                " allowed. Ask the operator to revoke credentials that nobody needs, or wait until some expire.",
                retry_after=round(COUNT_SECONDS),
            )

    def _undo_later(self, api: KubeApi, created: Sequence[str]) -> None:
        task = asyncio.create_task(self._undo(api, created))
        self._undoing.add(task)
        task.add_done_callback(self._undoing.discard)

    async def _undo(self, api: KubeApi, created: Sequence[str]) -> None:
        """Delete the bindings and then the account. Only logs a failure, because the reconciler deletes the rest."""
        for path in reversed(created):
            try:
                await api.delete(path)
            except ClustercertError as error:
                logger.warning(
                    "object of a failed credential not deleted, will be retried",
                    cluster=self.cluster_id,
                    path=path,
                    error=error.message,
                )


async def delete_account(api: KubeApi, installation: str, number: str, namespaces: Iterable[str]) -> None:
    """Delete the bindings of a credential, and then its account.

    Deletes the account also if a binding can't be deleted, because the account's tokens end with the account. Raises
    the first error at the end: ApiServerRefused, RemoteFailed or Unavailable.

    Args:
        namespaces: where to look for RoleBindings.
    """
    selected = {"labelSelector": selector(installation, number)}
    slots = asyncio.Semaphore(_MAX_CALLS)

    async def delete_in(path: str, *, is_account: bool = False) -> None:
        number_of = account_number if is_account else binding_number
        async with slots:
            found = pages(api, path, selected, _MAX_PAGES, size=_MAX_LISTED, max_bytes=_MAX_LIST_BYTES)
            try:
                async for page in found:
                    for name in _names(page):
                        if number_of(name) == number:
                            await api.delete(f"{path}/{segment(name)}")
            except TooManyPages as error:
                raise RemoteFailed(
                    "The cluster has too many objects with the labels of one credential."
                ) from error

    paths = [CLUSTER_ROLE_BINDINGS_PATH, *map(role_bindings_path, sorted(set(namespaces)))]
    failures = [*await _failures(delete_in(path) for path in paths)]
    failures += await _failures([delete_in(ACCOUNTS_PATH, is_account=True)])
    if failures:
        raise failures[0]


async def _failures(calls: Iterable[Coroutine[Any, Any, None]]) -> list[BaseException]:
    results = await asyncio.gather(*calls, return_exceptions=True)
    return [each for each in results if each is not None]


async def _create(api: KubeApi, path: str, document: JsonObject, created: list[str]) -> str:
    """Create an object, and return its uid. Adds the object's path to `created` if the object may exist.

    The client sends a request again after a lost connection. So an existing object is accepted if it equals the
    requested object: nobody else knows the credential number.
    """
    name = str(_metadata(document)["name"])
    own_path = f"{path}/{segment(name)}"
    created.append(own_path)
    try:
        answer = await api.create(path, document, max_bytes=_MAX_OBJECT_BYTES)
    except ApiServerRefused as refused:
        if refused.http_status != _CONFLICT:
            raise
        answer = await api.get(own_path, max_bytes=_MAX_OBJECT_BYTES)
        if differing := _differing(document, answer):
            created.remove(own_path)
            raise _not_as_requested(name, differing) from refused
    if differing := _differing(document, answer):
        raise _not_as_requested(name, differing)
    return str(_metadata(answer)["uid"])


def _not_as_requested(name: str, differing: str) -> RemoteFailed:
    return RemoteFailed(
        f"The cluster has the object {name}, but not as this service requested it ({differing}). No credential was"
        " issued. Tell the operator to look for a webhook or a program that changes the object."
    )


def _differing(document: JsonObject, answer: JsonObject) -> str | None:
    """Return the field in which an API server's object differs from the requested one, or None."""
    wanted, found = _metadata(document), _metadata(answer)
    uid = found.get("uid")
    if not isinstance(uid, str) or not 0 < len(uid) <= _MAX_UID:
        return "metadata.uid"
    for name in ("name", "namespace"):
        if wanted.get(name, "") != found.get(name, ""):
            return f"metadata.{name}"
    labels = found.get("labels")
    if not isinstance(labels, dict) or not dict(wanted["labels"]).items() <= labels.items():
        return "metadata.labels"
    for name in ("roleRef", "subjects"):
        if name in document and document[name] != answer.get(name):
            return name
    return None


def _checked_token(text: str, account: str, uid: str, lifetime: timedelta, now: datetime) -> IssuedToken:
    """Check that a token is the requested token of a service account. Raises RemoteFailed, without the token."""
    try:
        claims: Any = read_claims(text)
        kubernetes = claims["kubernetes.io"]
        expected: Mapping[str, bool] = {
            "sub": claims["sub"] == f"{SERVICE_ACCOUNT_PREFIX}{USERS_NAMESPACE}:{account}",
            "namespace": kubernetes["namespace"] == USERS_NAMESPACE,
            "serviceaccount": kubernetes["serviceaccount"] == {"name": account, "uid": uid},
            "jti": str(UUID(claims["jti"])) == claims["jti"],
            "aud": _is_audience(claims["aud"]),
            "iss": isinstance(claims["iss"], str) and claims["iss"] != "",
        }
        issued_at, expires_at = (_time(claims[name]) for name in ("iat", "exp"))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError) as error:
        raise RemoteFailed(
            "The cluster's API server sent no valid token for a new service account. No credential was issued. Tell"
            " the operator."
        ) from error
    if wrong := next((name for name, is_right in expected.items() if not is_right), None):
        raise RemoteFailed(
            f"The cluster's API server sent a token that differs from the requested token (claim {wrong}). No"
            " credential was issued. Tell the operator to check the cluster."
        )
    if abs(issued_at - now) > MAX_CLOCK_DIFFERENCE:
        raise RemoteFailed(
            "The clock of the cluster's API server differs from this service's clock by more than"
            f" {MAX_CLOCK_DIFFERENCE.total_seconds() / 60:.0f} minutes. No credential was issued. The operator must"
            " correct the clocks."
        )
    if not issued_at < expires_at <= issued_at + lifetime + timedelta(seconds=1) or expires_at <= now:
        raise RemoteFailed(
            "The cluster's API server sent a token that does not have the requested lifetime. No credential was"
            " issued. Tell the operator to check the cluster."
        )
    return IssuedToken(text, claims["jti"], account, expires_at)


def _is_audience(claim: object) -> bool:
    audiences = claim if isinstance(claim, list) else [claim]
    return bool(audiences) and all(isinstance(each, str) and each for each in audiences)


def _time(claim: object) -> datetime:
    if not isinstance(claim, int) or isinstance(claim, bool):
        raise TypeError("not a time")
    return datetime.fromtimestamp(claim, UTC)


def _metadata(document: JsonObject) -> dict[str, Any]:
    metadata = document.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _items(answer: JsonObject) -> list[object]:
    items = answer.get("items")
    # An empty list may be null. Source: Go's encoding of a nil slice.
    if not isinstance(items, list | None):
        raise RemoteFailed(UNEXPECTED_RESPONSE)
    return items or []


def _names(answer: JsonObject) -> list[str]:
    """Return the names of the objects in a list."""
    found = [each.get("metadata") for each in _items(answer)[:_MAX_LISTED] if isinstance(each, dict)]
    return [str(each.get("name")) for each in found if isinstance(each, dict)]
