"""Checks whether a cluster may get credentials that are tokens: its version, admission policies, rights, mapped roles.

Without the admission policies, holders of some roles could take over accounts of credentials. So each look sends
requests that RBAC allows and the policies must deny. The requests are dry runs, which change nothing.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TypeVar

from clustercert.kube_api import UNEXPECTED_RESPONSE, ApiServerRefused, KubeApi, printable, segment
from clustercert.kubernetes.setup.token_access import BINDINGS_POLICY, NAMESPACES_POLICY
from clustercert.kubernetes.token_roles import dangers
from clustercert.model import JsonObject
from clustercert.model.clusters import Registration
from clustercert.model.errors import RemoteFailed
from clustercert.model.group_roles import CLUSTER_ADMIN, RoleGrant, parse_group_roles
from clustercert.model.kubernetes import (
    ACCESS_NAMESPACE,
    CREDENTIAL_ID,
    INSTALLATION_LABEL,
    ISSUER_ACCOUNT,
    ISSUER_USER,
    TOKEN_ID,
    USERS_NAMESPACE,
)
from clustercert.model.token_objects import (
    ACCOUNTS_PATH,
    RBAC,
    binding_name,
    bindings_path,
    labels,
)

T = TypeVar("T")
_Item = TypeVar("_Item")

OLDEST_VERSION = (1, 30)
"""The first version of Kubernetes that always has ValidatingAdmissionPolicies."""

_VERSION = re.compile(r"v?(\d{1,4})\.(\d{1,4})(?!\d)", re.ASCII)
_MAX_VERSION = 60
_WHOAMI = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_DRY_RUN = {"dryRun": "All"}
# No credential has this number.
_PROBE_NUMBER = "0" * 40
_PROBE_ACCOUNT = "clustercert-probe"
# Requests to one API server at the same time. A cluster may have hundreds of mapped roles.
_AT_ONCE = 8
_APPLY_AGAIN = "Apply the objects of this cluster again with an administrator's kubeconfig."


@dataclass(frozen=True, slots=True)
class Look:
    """The result of one inspection of the cluster.

    Attributes:
        problem: why the service must issue no tokens for the cluster, and what to do about it; None if it may.
        version: the API server's version, such as `v1.32.0`; empty if it was not read.
        dangers: the dangerous rights of each mapped role that has some, by the role's written form.
        unusable: why no credential can get a mapped role now, by the role's written form.
        excess: rights that the service's own account has and should not have, such as `get secrets`.
    """

    problem: str | None
    version: str = ""
    dangers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unusable: Mapping[str, str] = field(default_factory=dict)
    excess: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Access:
    """A right of the service's own account, as a SelfSubjectAccessReview asks for it."""

    verb: str
    resource: str
    group: str = ""
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        where = f" in {self.namespace}" if self.namespace else ""
        return f"{self.verb} {self.resource}{where}"


_ACCOUNTS = "serviceaccounts"
_NEEDED = (
    *(_Access(verb, _ACCOUNTS, namespace=USERS_NAMESPACE) for verb in ("create", "get", "list", "delete")),
    _Access("create", f"{_ACCOUNTS}/token", namespace=USERS_NAMESPACE),
    _Access("create", f"{_ACCOUNTS}/token", namespace=ACCESS_NAMESPACE, name=ISSUER_ACCOUNT),
    *(_Access(verb, "clusterrolebindings", RBAC) for verb in ("get", "list", "delete")),
)
_FORBIDDEN = (
    _Access("get", "secrets", namespace=USERS_NAMESPACE),
    _Access("create", "secrets", namespace=USERS_NAMESPACE),
    _Access("create", "pods", namespace=USERS_NAMESPACE),
    _Access("update", _ACCOUNTS, namespace=USERS_NAMESPACE),
    _Access("impersonate", _ACCOUNTS, namespace=USERS_NAMESPACE),
    _Access("update", "clusterrolebindings", RBAC),
    _Access("bind", "clusterroles", RBAC),
    _Access("escalate", "clusterroles", RBAC),
    _Access("*", "*", "*"),
)


class _Problem(Exception):
    """A finding that stops issuing in the cluster."""


class _Untested(_Problem):
    """A dry run was rejected, but not by the admission policy."""


async def find_problem(api: KubeApi, cluster: Registration, installation: str) -> str | None:
    """Return `Look.problem` of a look. Raises the errors of `look`."""
    return (await look(api, cluster, installation)).problem


async def look(api: KubeApi, cluster: Registration, installation: str) -> Look:
    """Look at a cluster with the token of the service's own account.

    Args:
        installation: the id of this installation, see `model.kubernetes.installation_id`.

    Raises:
        Unavailable: the API server can't be reached, or is busy.
        RemoteFailed: the API server sent an unexpected response, or does not accept the token (ApiServerRefused).
    """
    version, found = "", _Roles()
    excess: tuple[str, ...] = ()
    try:
        version = await _check_version(api)
        await _check_account(api)
        for name in (USERS_NAMESPACE, ACCESS_NAMESPACE):
            await _check_namespace(api, name, installation)
        excess = await _check_rights(api)
        options = cluster.options
        try:
            roles = parse_group_roles(options.group_roles, allow_cluster_admin=options.allow_cluster_admin)
        except ValueError as error:
            raise _Problem(str(error)) from error
        found = await _read_roles(api, sorted({role for each in roles.values() for role in each}))
        _check_dangers(found)
        await _check_policies(api, found.usable, installation)
    except _Problem as problem:
        return Look(str(problem), version, found.dangers, found.unusable, excess)
    return Look(None, version, found.dangers, found.unusable, excess)


async def _check_version(api: KubeApi) -> str:
    git_version = (await api.get("/version")).get("gitVersion")
    text = git_version if isinstance(git_version, str) else ""
    parsed = _VERSION.match(text)
    if parsed is None:
        raise RemoteFailed(UNEXPECTED_RESPONSE)
    if (int(parsed[1]), int(parsed[2])) < OLDEST_VERSION:
        raise _Problem(
            f"Kubernetes {printable(text, _MAX_VERSION)} lacks admission policies. Upgrade the cluster to "
            "1.30 or newer."
        )
    return printable(text, _MAX_VERSION)


async def _check_account(api: KubeApi) -> None:
    """Check that the API server reports the id of a request's token, which impersonated requests do not have."""
    review = await api.create(
        _WHOAMI, {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    )
    try:
        user = review["status"]["userInfo"]  # type: ignore[index] # TypeError is caught
        username, extra = user["username"], user.get("extra") or {}
        ids = [str(each) for each in extra.get(CREDENTIAL_ID) or []]
    except (LookupError, TypeError, AttributeError) as error:
        raise RemoteFailed(UNEXPECTED_RESPONSE) from error
    if username != ISSUER_USER:
        raise _Problem(
            f"The service's token belongs to {printable(str(username), 200)}, not to {ISSUER_USER}. {_APPLY_AGAIN}"
        )
    if not any(each.startswith(TOKEN_ID) for each in ids):
        raise _Problem(
            "The API server does not tell the ids of tokens, so admission policies can't recognize impersonated "
            "requests. Enable the feature gate ServiceAccountTokenJTI, or upgrade to Kubernetes 1.32."
        )


async def _check_namespace(api: KubeApi, name: str, installation: str) -> None:
    namespace = await _find(api, f"/api/v1/namespaces/{name}")
    if isinstance(namespace, int):
        raise _Problem(f"The namespace {name} is missing, or the service may not read it. {_APPLY_AGAIN}")
    metadata = namespace.get("metadata")
    if not isinstance(metadata, dict):
        raise RemoteFailed(UNEXPECTED_RESPONSE)
    found = metadata.get("labels")
    owner = found.get(INSTALLATION_LABEL) if isinstance(found, dict) else None
    if owner != installation:
        raise _Problem(
            f"The namespace {name} does not belong to this installation of clustercert: its label {INSTALLATION_LABEL} "
            "is missing or different. Remove the other installation's objects first."
        )
    if metadata.get("deletionTimestamp"):
        raise _Problem(f"The namespace {name} is being deleted. Wait for its end. {_APPLY_AGAIN}")


async def _check_rights(api: KubeApi) -> tuple[str, ...]:
    """Check the rights of the service's own account. Returns the rights that the account should not have."""
    allowed = await _each((*_NEEDED, *_FORBIDDEN), lambda access: _is_allowed(api, access))
    needed, forbidden = allowed[: len(_NEEDED)], allowed[len(_NEEDED) :]
    missing = [str(access) for access, is_allowed in zip(_NEEDED, needed, strict=True) if not is_allowed]
    if missing:
        raise _Problem(f"The service's own account may not {', '.join(missing)}. {_APPLY_AGAIN}")
    return tuple(str(access) for access, is_allowed in zip(_FORBIDDEN, forbidden, strict=True) if is_allowed)


async def _is_allowed(api: KubeApi, access: _Access) -> bool:
    resource, _, subresource = access.resource.partition("/")
    attributes = {
        "verb": access.verb,
        "group": access.group,
        "resource": resource,
        "subresource": subresource,
        "namespace": access.namespace,
        "name": access.name,
    }
    review = await api.create(
        _REVIEWS,
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {name: text for name, text in attributes.items() if text}},
        },
    )
    status = review.get("status")
    if not isinstance(status, dict):
        raise RemoteFailed(UNEXPECTED_RESPONSE)
    return status.get("allowed") is True


@dataclass(slots=True)
class _Roles:
    """The facts known about the mapped roles.

    Attributes:
        unread: roles that the service may bind in the whole cluster, but whose rules are unknown.
    """

    usable: list[RoleGrant] = field(default_factory=list)
    dangers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)
    unread: list[RoleGrant] = field(default_factory=list)


async def _read_roles(api: KubeApi, roles: Sequence[RoleGrant]) -> _Roles:
    found = _Roles()
    for role, (document, may_bind) in zip(
        roles, await _each(roles, lambda role: _read_role(api, role)), strict=True
    ):
        if isinstance(document, int):
            is_missing = document == HTTPStatus.NOT_FOUND
            found.unusable[str(role)] = (
                f"The {'role is missing' if is_missing else 'service may not read the role'}."
            )
            if may_bind and not is_missing and not role.namespace:
                found.unread.append(role)
            continue
        rules = document.get("rules") or []
        if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
            raise RemoteFailed(UNEXPECTED_RESPONSE)
        if of_role := dangers(rules):
            found.dangers[str(role)] = of_role
        if may_bind:
            found.usable.append(role)
        else:
            found.unusable[str(role)] = "The service may not bind the role."
    return found


async def _read_role(api: KubeApi, role: RoleGrant) -> tuple[JsonObject | int, bool]:
    """Return the role, or the status 403 or 404, and whether the service may bind the role where it is mapped."""
    plural = "clusterroles" if role.kind == "ClusterRole" else "roles"
    namespace = f"/namespaces/{role.namespace}" if role.kind == "Role" else ""
    document = await _find(api, f"/apis/{RBAC}/v1{namespace}/{plural}/{segment(role.name)}")
    access = _Access("bind", plural, RBAC, role.namespace, role.name)
    return document, await _is_allowed(api, access)


def _check_dangers(found: _Roles) -> None:
    """Raise _Problem if a role that is mapped for the whole cluster has, or may have, dangerous rights."""
    for role in found.unread:
        raise _Problem(
            f"The service may bind the role {role}, but may not read it. So its rights can't be checked. {_APPLY_AGAIN}"
        )
    for text, of_role in found.dangers.items():
        role = RoleGrant.parse(text)
        # The map contains this role only if the operator allowed it.
        if not role.namespace and role.name != CLUSTER_ADMIN:
            raise _Problem(
                f"The role {text} gives the right to {', '.join(of_role)}. In the whole cluster, its holder "
                "could keep access after a revocation. Remove these rights from the role, or map the role "
                f"in a namespace: {text}@NAMESPACE."
            )


async def _check_policies(api: KubeApi, usable: Iterable[RoleGrant], installation: str) -> None:
    """Send dry runs that RBAC allows and the admission policies must deny."""
    account: JsonObject = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": _PROBE_ACCOUNT, "namespace": USERS_NAMESPACE},
    }
    await _check_denied(api, ACCOUNTS_PATH, account, NAMESPACES_POLICY)
    in_namespaces: dict[bool, list[RoleGrant]] = {}
    for role in usable:
        in_namespaces.setdefault(bool(role.namespace), []).append(role)
    for roles in in_namespaces.values():
        await _check_bindings_denied(api, roles, installation)


async def _check_bindings_denied(api: KubeApi, roles: Iterable[RoleGrant], installation: str) -> None:
    """Test the policy with the first role whose dry run gives a result.

    Admins of a namespace can let bindings there fail for other reasons, for example with a quota.
    """
    untested: _Untested | None = None
    for role in roles:
        placed = {"namespace": role.namespace} if role.namespace else {}
        binding: JsonObject = {
            "apiVersion": f"{RBAC}/v1",
            "kind": "RoleBinding" if role.namespace else "ClusterRoleBinding",
            "metadata": {
                "name": binding_name(_PROBE_NUMBER, 0),
                **placed,
                "labels": labels(installation, _PROBE_NUMBER),
            },
            "roleRef": {"apiGroup": RBAC, "kind": role.kind, "name": role.name},
            "subjects": [{"apiGroup": RBAC, "kind": "User", "name": _PROBE_ACCOUNT}],
        }
        try:
            await _check_denied(api, bindings_path(role), binding, BINDINGS_POLICY)
        except _Untested as reason:
            untested = reason
        else:
            return
    if untested is not None:
        raise untested


async def _check_denied(api: KubeApi, path: str, document: JsonObject, policy: str) -> None:
    try:
        await api.create(path, document, _DRY_RUN)
    except ApiServerRefused as refused:
        if f"'{policy}'" in refused.server_message:
            return
        if refused.http_status == HTTPStatus.UNAUTHORIZED:
            raise
        raise _Untested(
            f"The admission policy {policy} could not be tested: the API server rejected a dry run with status "
            f"{refused.http_status} for another reason. {_APPLY_AGAIN}"
        ) from refused
    raise _Problem(
        f"The admission policy {policy} is missing, or allows a request that it must deny. {_APPLY_AGAIN}"
    )


async def _find(api: KubeApi, path: str) -> JsonObject | int:
    """Fetch an object, or return the status if it is missing (404) or the service may not read it (403)."""
    try:
        return await api.get(path)
    except ApiServerRefused as refused:
        if refused.http_status in {HTTPStatus.NOT_FOUND, HTTPStatus.FORBIDDEN}:
            return refused.http_status
        raise


async def _each(items: Sequence[_Item], work: Callable[[_Item], Awaitable[T]]) -> list[T]:
    """Return the results for all items, in their order. Raises the first error."""
    limit = asyncio.Semaphore(_AT_ONCE)

    async def limited(item: _Item) -> T:
        async with limit:
            return await work(item)

    tasks = [asyncio.ensure_future(limited(item)) for item in items]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
