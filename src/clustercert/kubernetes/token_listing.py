"""Reads and deletes the objects of credentials that are tokens: service accounts and their bindings.

Nothing that an API server sends makes a list longer than `MAX_PAGES` pages. Only objects with this service's name,
labels and subject count as its own; other objects are only reported.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any

from clustercert.kube_api import (
    PAGE,
    UNEXPECTED_RESPONSE,
    ApiServerRefused,
    KubeApi,
    TooManyPages,
    is_too_long,
    pages,
    printable,
)
from clustercert.model.errors import ClustercertError, RemoteFailed, Unavailable
from clustercert.model.group_roles import RoleGrant
from clustercert.model.kubernetes import CREDENTIAL_LABEL, SERVICE_ACCOUNT_PREFIX, USERS_NAMESPACE
from clustercert.model.times import parse_rfc3339
from clustercert.model.token_objects import (
    ACCOUNTS_PATH,
    CLUSTER_ROLE_BINDINGS_PATH,
    NOT_AFTER_ANNOTATION,
    account_number,
    binding_number,
    labels,
    role_bindings_path,
    selector,
)

# 100,000 objects of each list: more than a cluster has credentials. Without a limit, a hostile API server could send
# pages forever.
MAX_PAGES = 400
# The time limit for listing all bindings, and for listing all accounts.
MAX_SECONDS = 120.0
# For the bindings of a few credentials. Whoever writes many in a namespace must not delay the deletion of accounts.
MAX_SELECTED_SECONDS = 20.0
# The number of foreign objects that are reported by name.
MAX_FOREIGN = 100
# The number of credentials in one label selector. A number has 40 digits, so the selector has about 2 KB.
MAX_SELECTED = 50
# The number of simultaneous requests to an API server.
_AT_ONCE = 8
_MAX_NAME = 253
# Kubernetes creates this account in each namespace.
_DEFAULT_ACCOUNT = "default"
_USERS_GROUP = f"system:serviceaccounts:{USERS_NAMESPACE}"
_USERS_PREFIX = f"{SERVICE_ACCOUNT_PREFIX}{USERS_NAMESPACE}:"

Between = Callable[[], Awaitable[None]]


async def nothing_between() -> None:
    """Do nothing between two requests."""


@dataclass(slots=True)
class TokenListing:
    """The objects of credentials in a cluster.

    Attributes:
        bindings, accounts: credential number -> paths of the objects.
        foreign: other objects that give rights to accounts of the namespace of users, or that lie there, at most
            `MAX_FOREIGN` names; and namespaces whose bindings can't be read.
        other_accounts: the credential numbers in the names of accounts that lack this service's labels.
        problem: why the lists are not complete, for the operator; None if they are.
        failure: why bindings could not be read; None if they could. Without its account, a binding gives no rights, so
            the error is raised only after the accounts were deleted.
        has_all_accounts: whether no account is missing in `accounts`.
        not_after: credential number -> when the credential's time is over, as the annotations of its accounts say: the
            latest time; None if an account tells no time.
        created_at: credential number -> when the API server created the newest of its accounts; None if it tells no
            time for one of them. Unlike annotations, this time can't be chosen.
    """

    bindings: dict[str, list[str]] = field(default_factory=dict)
    accounts: dict[str, list[str]] = field(default_factory=dict)
    foreign: set[str] = field(default_factory=set)
    other_accounts: set[str] = field(default_factory=set)
    problem: str | None = None
    failure: ClustercertError | None = None
    has_all_accounts: bool = True
    not_after: dict[str, datetime | None] = field(default_factory=dict)
    created_at: dict[str, datetime | None] = field(default_factory=dict)

    @property
    def numbers(self) -> set[str]:
        """The numbers of all credentials with an object in the cluster."""
        return self.accounts.keys() | self.bindings.keys()

    def is_over(self, number: str, now: datetime, longest: timedelta) -> bool:
        """Return whether all accounts of a credential have expired, as they say, or are older than `longest`."""
        not_after, created_at = self.not_after.get(number), self.created_at.get(number)
        return (not_after is not None and not_after <= now) or (
            created_at is not None and now - created_at >= longest
        )

    def add_account(self, item: Mapping[str, Any], installation: str) -> None:
        """Add an account of the namespace of users."""
        name, its_labels = _named(item)
        number = account_number(name)
        if number is not None and _has_labels(its_labels, installation, number):
            self.accounts.setdefault(number, []).append(f"{ACCOUNTS_PATH}/{name}")
            metadata = item["metadata"]
            _keep_latest(self.not_after, number, metadata.get("annotations") or {}, NOT_AFTER_ANNOTATION)
            _keep_latest(self.created_at, number, metadata, "creationTimestamp")
        elif name != _DEFAULT_ACCOUNT:
            if number is not None:
                self.other_accounts.add(number)
            self._report("ServiceAccount", USERS_NAMESPACE, name)

    def add_binding(self, item: Mapping[str, Any], installation: str, namespace: str) -> None:
        """Add a binding of a namespace, or if the namespace is empty, of the whole cluster."""
        name, its_labels = _named(item)
        subjects = item.get("subjects") or []
        number = binding_number(name)
        if (
            number is not None
            and _has_labels(its_labels, installation, number)
            and len(subjects) == 1
            and _is_account_of(subjects[0], number)
        ):
            path = role_bindings_path(namespace) if namespace else CLUSTER_ROLE_BINDINGS_PATH
            self.bindings.setdefault(number, []).append(f"{path}/{name}")
        elif any(map(_points_to_users, subjects)):
            self._report("RoleBinding" if namespace else "ClusterRoleBinding", namespace, name)

    def _report(self, kind: str, namespace: str, name: str) -> None:
        if len(self.foreign) < MAX_FOREIGN:
            self.foreign.add(f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}")


async def list_all(
    api: KubeApi, installation: str, namespaces: Iterable[str], between: Between = nothing_between
) -> TokenListing:
    """List the objects of all credentials.

    Raises RemoteFailed or Unavailable if the accounts can't be read, or if the API server does not answer. If only
    bindings can't be read, the error is `TokenListing.failure`, which `delete` raises at its end. A namespace that is
    missing, or whose bindings are too long, too many or may not be read, is named in `TokenListing.foreign`: its admins
    cause that, and must not stop the cluster's other users.

    Args:
        namespaces: the namespaces with bindings.
        between: called between two requests.
    """
    found = TokenListing()
    late = Unavailable(
        f"The cluster's API server took more than {MAX_SECONDS:.0f} seconds to list the objects of credentials."
    )
    try:
        async with asyncio.timeout(MAX_SECONDS):
            # First the bindings: an account is created before its bindings. So if the account of a binding is not in
            # the next list, the account no longer exists.
            for namespace in ("", *sorted(namespaces)):
                await _add_bindings(api, found, installation, namespace, {}, between)
    except TimeoutError:
        found.failure = late
    try:
        async with asyncio.timeout(MAX_SECONDS):
            found.has_all_accounts = await _add_accounts(api, found, installation, {}, between)
    except TimeoutError as error:
        raise late from error
    return found


async def list_some(
    api: KubeApi, installation: str, namespaces: Iterable[str], numbers: Sequence[str]
) -> TokenListing:
    """List the objects of at most `MAX_SELECTED` credentials, found by their labels.

    Raises the same errors as `list_all`.
    """
    found = TokenListing()
    chosen = {"labelSelector": f"{selector(installation)},{CREDENTIAL_LABEL} in ({','.join(numbers)})"}
    try:
        async with asyncio.timeout(MAX_SELECTED_SECONDS):
            await in_parallel(
                lambda namespace: _add_bindings(api, found, installation, namespace, chosen),
                ("", *sorted(namespaces)),
            )
    except TimeoutError:
        found.failure = Unavailable(
            f"The cluster's API server took more than {MAX_SELECTED_SECONDS:.0f} seconds to list bindings."
        )
    found.has_all_accounts = await _add_accounts(api, found, installation, chosen)
    return found


async def delete(
    api: KubeApi, found: TokenListing, numbers: Iterable[str], between: Between = nothing_between
) -> int:
    """Delete the bindings and then the accounts of credentials. Returns the number of accounts.

    If an object can't be deleted, deletes the others, and then raises RemoteFailed, as for bindings that could not be
    read. Raises Unavailable at once if a deletion is not answered.
    """
    chosen = list(numbers)
    bindings = [path for number in chosen for path in found.bindings.get(number, ())]
    accounts = [path for number in chosen for path in found.accounts.get(number, ())]
    failure = found.failure
    for paths in (bindings, accounts):
        try:
            await in_parallel(api.delete, paths, between)
        except RemoteFailed as error:
            # Without its account, a binding gives no rights.
            failure = error
    if failure is not None:
        raise failure
    return len(accounts)


def mapped_namespaces(group_roles: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """Return the namespaces in which a cluster's `group_roles` bind roles."""
    roles = (RoleGrant.parse(text) for texts in group_roles.values() for text in texts)
    return frozenset(role.namespace for role in roles if role.namespace)


async def in_parallel(
    work: Callable[[str], Awaitable[None]], items: Sequence[str], between: Between = nothing_between
) -> None:
    """Do the work for all items, a few at once.

    Raises Unavailable at once. After another error, does the work for the other items, and then raises the error.
    """
    failure: BaseException | None = None
    for start in range(0, len(items), _AT_ONCE):
        results = await asyncio.gather(
            *map(work, items[start : start + _AT_ONCE]),
            return_exceptions=True,
        )
        failures = [result for result in results if isinstance(result, BaseException)]
        for each in failures:
            if not isinstance(each, ClustercertError) or isinstance(each, Unavailable):
                raise each
        failure = failure or next(iter(failures), None)
        await between()
    if failure is not None:
        raise failure


async def _add_accounts(
    api: KubeApi,
    found: TokenListing,
    installation: str,
    chosen: Mapping[str, str],
    between: Between = nothing_between,
) -> bool:
    """Add accounts. Returns whether all accounts were read."""
    add = functools.partial(found.add_account, installation=installation)
    is_complete = await _add_pages(api, ACCOUNTS_PATH, chosen, add, between)
    if not is_complete:
        found.problem = found.problem or _too_many(f"accounts in {USERS_NAMESPACE}")
    return is_complete


async def _add_bindings(
    api: KubeApi,
    found: TokenListing,
    installation: str,
    namespace: str,
    chosen: Mapping[str, str],
    between: Between = nothing_between,
) -> None:
    if isinstance(found.failure, Unavailable):
        # Don't wait for each namespace of an API server that does not answer.
        return
    path = role_bindings_path(namespace) if namespace else CLUSTER_ROLE_BINDINGS_PATH
    add = functools.partial(found.add_binding, installation=installation, namespace=namespace)
    try:
        is_complete = await _add_pages(api, path, chosen, add, between)
    except (RemoteFailed, Unavailable) as error:
        if isinstance(error, Unavailable) and not namespace:
            raise
        if (unread := _unreadable(namespace, error)) is None:
            found.failure = found.failure or error
        else:
            found.foreign.add(unread)
        return
    if not is_complete and namespace:
        found.foreign.add(f"RoleBindings of the namespace {namespace}, which are too many to read")
    elif not is_complete:
        found.problem = found.problem or _too_many("bindings")


def _unreadable(namespace: str, error: ClustercertError) -> str | None:
    """Return how to report the bindings of a namespace that can't be read, if somebody in the cluster causes it."""
    if not namespace:
        return None
    if is_too_long(error):
        return f"RoleBindings of the namespace {namespace}, one of which is too long to read"
    # An API server also gives this answer after the namespace was deleted.
    if isinstance(error, ApiServerRefused) and error.http_status in {
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
    }:
        return f"RoleBindings of the namespace {namespace}, which the service may not read"
    return None


async def _add_pages(
    api: KubeApi,
    path: str,
    chosen: Mapping[str, str],
    add: Callable[[Mapping[str, Any]], None],
    between: Between,
) -> bool:
    """Add the items of a list. Returns False if the list has more than `MAX_PAGES` pages. Raises RemoteFailed."""
    try:
        async for page in pages(api, path, chosen, MAX_PAGES):
            try:
                items: Any = page.get("items") or []
                for item in items:
                    add(item)
            except (LookupError, TypeError, AttributeError, ValueError) as error:
                raise RemoteFailed(UNEXPECTED_RESPONSE) from error
            await between()
    except TooManyPages:
        return False
    return True


def _named(item: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    metadata = item["metadata"]
    name = metadata["name"]
    if not isinstance(name, str):
        raise TypeError("a name is no text")
    return printable(name, _MAX_NAME), metadata.get("labels") or {}


def _keep_latest(
    times: dict[str, datetime | None], number: str, fields: Mapping[str, Any], name: str
) -> None:
    """Set a credential's time to the latest one of its accounts; to None if one of them has none."""
    try:
        time = parse_rfc3339(fields[name])
    except (LookupError, TypeError, ValueError):
        time = None
    before = times.setdefault(number, time)
    times[number] = max(before, time) if before and time else None


def _has_labels(found: Mapping[str, Any], installation: str, number: str) -> bool:
    return all(found.get(label) == value for label, value in labels(installation, number).items())


def _is_account_of(subject: Mapping[str, Any], number: str) -> bool:
    return (
        subject.get("kind") == "ServiceAccount"
        and subject.get("namespace") == USERS_NAMESPACE
        and account_number(str(subject.get("name"))) == number
    )


def _points_to_users(subject: Mapping[str, Any]) -> bool:
    kind, name = subject.get("kind"), str(subject.get("name"))
    if kind == "ServiceAccount":
        return subject.get("namespace") == USERS_NAMESPACE
    return name == _USERS_GROUP if kind == "Group" else name.startswith(_USERS_PREFIX)


def _too_many(what: str) -> str:
    return (
        f"The cluster has more than {MAX_PAGES * PAGE} {what}. Find out who creates these objects, and "
        "delete the objects that are not needed."
    )
