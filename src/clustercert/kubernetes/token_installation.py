"""Installs, changes and removes what a cluster needs whose credentials are tokens, with an administrator's credential.

The objects are those of `kubernetes.setup.token_access`.
"""

import asyncio
import re
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from clustercert.kube_api import ApiServerRefused, KubeApi
from clustercert.kubernetes.cluster_objects import (
    ClusterRefused,
    ObjectReference,
    apply_object,
    delete_object,
    find_object,
    labels_of,
    list_objects,
    reference_of,
    require_ours,
)
from clustercert.kubernetes.setup.token_access import BINDINGS_POLICY, NAME, NAMESPACES_POLICY, token_access
from clustercert.kubernetes.token_look import find_problem
from clustercert.kubernetes.token_roles import dangers
from clustercert.kubernetes.verify.probe import EVERYTHING, CheckFailed, Probe
from clustercert.model import ClusterOptions, JsonObject
from clustercert.model.clusters import Registration
from clustercert.model.errors import ClustercertError, Conflict, InvalidRequest, RemoteFailed
from clustercert.model.group_roles import CLUSTER_ADMIN, RoleGrant, parse_group_roles
from clustercert.model.kubernetes import (
    ACCESS_NAMESPACE,
    CREDENTIAL_LABEL,
    ISSUER_ACCOUNT,
    MANAGED_BY,
    USERS_NAMESPACE,
)
from clustercert.model.token_objects import selector

OLDEST_MINOR = 30
"""The first minor version of Kubernetes 1 that has ValidatingAdmissionPolicies by default."""

TOKEN_SECONDS = 3600
"""The lifetime of the account's first token. The service renews it at once."""

ENFORCED_SECONDS = 60.0
"""How long to wait until the API servers enforce new admission policies."""

_PAUSE_SECONDS = 0.25
_VERSION = re.compile(r"v1\.([0-9]{1,4})\.")
_MANAGED = ",".join(f"{name}={value}" for name, value in MANAGED_BY.items())
_NAMESPACES = (USERS_NAMESPACE, ACCESS_NAMESPACE)
_POLICIES = (NAMESPACES_POLICY, BINDINGS_POLICY)


@dataclass(frozen=True, slots=True)
class TokenInstallation:
    """The objects of one installation of this service in a cluster whose credentials are tokens.

    Attributes:
        api: authenticates as an administrator of the whole cluster.
        installation: the id of the installation, see `model.kubernetes.installation_id`.
    """

    api: KubeApi
    installation: str

    def documents(self, options: ClusterOptions) -> list[JsonObject]:
        """Return all objects in the order in which to apply them. Raises InvalidRequest for an invalid map."""
        return installed_objects(self.installation, options)

    async def check_administrator(self) -> str:
        """Check that the credential works, and has all rights in the cluster. Returns the user's name.

        Raises InvalidRequest, ClusterRefused, RemoteFailed or Unavailable.
        """
        probe = Probe(self.api)
        try:
            user = (await probe.who_am_i()).username
            is_administrator = await probe.is_allowed(EVERYTHING)
        except CheckFailed as failed:
            cause = failed.__cause__
            if isinstance(cause, ApiServerRefused):
                raise ClusterRefused("accept the kubeconfig's credential", cause) from failed
            if isinstance(cause, ClustercertError):
                raise cause from cause.__cause__
            raise
        if not is_administrator:
            raise InvalidRequest(
                f"The user {user} of the kubeconfig is not an administrator of the whole cluster. The admission"
                f" policies let only users with the ClusterRole {CLUSTER_ADMIN} write these objects. Name a kubeconfig"
                " of such a user."
            )
        return user

    async def check_cluster(self, options: ClusterOptions) -> tuple[str, ...]:
        """Check that the cluster has everything that must exist before the objects are applied. Changes nothing.

        Returns sentences about mapped roles that give their holders more rights than it seems. Raises InvalidRequest
        for a cluster that is too old, or lacks a mapped namespace or role, or ForeignObject for a cluster of another
        installation. Also raises ClusterRefused, RemoteFailed or Unavailable.
        """
        version = str((await self.api.get("/version")).get("gitVersion", ""))
        minor = _VERSION.match(version)
        if minor is not None and int(minor[1]) < OLDEST_MINOR:
            raise InvalidRequest(
                f"This cluster has Kubernetes {version}. Credentials that are tokens need 1.{OLDEST_MINOR} or newer, "
                "which has admission policies. Upgrade the cluster."
            )
        await self._require_own_namespaces(options)
        roles = _roles(options)
        for namespace in sorted({role.namespace for role in roles if role.namespace}):
            if await find_object(self.api, ObjectReference("Namespace", "", namespace)) is None:
                raise InvalidRequest(
                    f"The cluster has no namespace {namespace}, in which a role is mapped. Create the namespace first."
                )
        found = [await self._role_note(role) for role in roles]
        return tuple(note for note in found if note)

    async def _require_own_namespaces(self, options: ClusterOptions) -> None:
        for document in self.documents(options):
            if document["kind"] == "Namespace":
                found = await find_object(self.api, reference_of(document))
                if found is not None:
                    require_ours(found, document)

    async def require_installed(self, options: ClusterOptions) -> None:
        """Raise Conflict unless the cluster has the namespaces of this installation."""
        await self._require_own_namespaces(options)
        for name in _NAMESPACES:
            if await find_object(self.api, ObjectReference("Namespace", "", name)) is None:
                raise Conflict(
                    f"The cluster of this kubeconfig has no namespace {name}. Name a kubeconfig of the right cluster."
                )

    async def _role_note(self, role: RoleGrant) -> str:
        """Check that a mapped role exists, and may be mapped. Returns a sentence about dangerous rights, or ""."""
        in_namespace = role.namespace if role.kind == "Role" else ""
        document = await find_object(self.api, ObjectReference(role.kind, in_namespace, role.name))
        if document is None:
            raise InvalidRequest(f"The cluster has no {role}, which is mapped. Create the role first.")
        rules = document.get("rules")
        found = dangers(rules if isinstance(rules, list) else [])
        if not found:
            return ""
        if role.kind == "ClusterRole" and role.name == CLUSTER_ADMIN:
            return f"{role}: its holder can leave other ways into the cluster, which no revocation ends."
        if not role.namespace:
            raise InvalidRequest(
                f"{role} can't be mapped for the whole cluster, because its holder can {', '.join(found)}, and so keep "
                f"access after a revocation. Name a namespace: {role}@NAMESPACE."
            )
        return (
            f"{role}: its holder can {', '.join(found)}, and so keep after a revocation what accounts of the namespace"
            f" {role.namespace} may do."
        )

    async def apply(
        self, documents: Iterable[JsonObject], report: Callable[[ObjectReference, str], object]
    ) -> None:
        """Apply objects in order. Raises ForeignObject, ClusterRefused, RemoteFailed or Unavailable.

        Args:
            report: called after each object with `created` or `updated`.
        """
        for document in documents:
            report(reference_of(document), await apply_object(self.api, document))

    async def new_token(self) -> str:
        """Return a new token of this service's own account. Raises ClusterRefused, RemoteFailed or Unavailable."""
        account = ObjectReference("ServiceAccount", ACCESS_NAMESPACE, ISSUER_ACCOUNT)
        request: JsonObject = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": TOKEN_SECONDS},
        }
        try:
            answer = await self.api.create(f"{account.path}/token", request)
        except ApiServerRefused as refused:
            raise ClusterRefused(f"create a token of {account}", refused) from refused
        status = answer.get("status")
        token = status.get("token") if isinstance(status, dict) else None
        if not isinstance(token, str) or not token:
            raise RemoteFailed("The cluster sent no token for the new account. Run the command again.")
        return token

    async def stale(self, options: ClusterOptions) -> list[ObjectReference]:
        """List the rights and bindings in the cluster for roles that are no longer mapped.

        Raises ClusterRefused, RemoteFailed or Unavailable.
        """
        wanted = {reference_of(each) for each in self.documents(options)}
        own = [each for each in await self._own_rights() if each not in wanted]
        roles = set(_roles(options))
        return [
            *(reference for reference, role in await self._bindings() if role not in roles),
            *own,
        ]

    async def everything(self) -> list[ObjectReference]:
        """List all objects of this installation, in the order in which to delete them: rights before policies.

        Raises ForeignObject if the cluster belongs to another installation; also ClusterRefused, RemoteFailed or
        Unavailable.
        """
        await self._require_own_namespaces(ClusterOptions())
        accounts = await list_objects(
            self.api, "ServiceAccount", USERS_NAMESPACE, selector(self.installation)
        )
        fixed = [
            ObjectReference("ServiceAccount", ACCESS_NAMESPACE, ISSUER_ACCOUNT),
            *(ObjectReference("ValidatingAdmissionPolicyBinding", "", name) for name in _POLICIES),
            *(ObjectReference("ValidatingAdmissionPolicy", "", name) for name in _POLICIES),
            *(ObjectReference("Namespace", "", name) for name in _NAMESPACES),
        ]
        return [
            *(reference for reference, _ in await self._bindings()),
            *(reference_of(each, "ServiceAccount") for each in accounts),
            *await self._own_rights(),
            *[each for each in fixed if await self._is_ours(each)],
        ]

    async def delete(
        self, references: Iterable[ObjectReference], report: Callable[[ObjectReference, str], object]
    ) -> None:
        """Delete objects in order. Raises ClusterRefused, RemoteFailed or Unavailable."""
        for reference in references:
            await delete_object(self.api, reference)
            report(reference, "deleted")

    async def _is_ours(self, reference: ObjectReference) -> bool:
        found = await find_object(self.api, reference)
        return found is not None and MANAGED_BY.items() <= labels_of(found).items()

    async def _bindings(self) -> list[tuple[ObjectReference, RoleGrant | None]]:
        """List the bindings of credentials with their roles. The role is None if the binding is malformed."""
        found: list[tuple[ObjectReference, RoleGrant | None]] = []
        for kind in ("ClusterRoleBinding", "RoleBinding"):
            for each in await list_objects(self.api, kind, selector=selector(self.installation)):
                if CREDENTIAL_LABEL in labels_of(each):
                    reference = reference_of(each, kind)
                    found.append((reference, _bound_role(each, reference.namespace)))
        return found

    async def _own_rights(self) -> list[ObjectReference]:
        """List the bindings and roles that give this service's account its rights, bindings first."""
        found: list[ObjectReference] = []
        for kind in ("ClusterRoleBinding", "RoleBinding", "ClusterRole", "Role"):
            listed = await list_objects(self.api, kind, selector=_MANAGED)
            found += [each for each in (reference_of(item, kind) for item in listed) if each.name == NAME]
        return found


def installed_objects(installation: str, options: ClusterOptions) -> list[JsonObject]:
    """Return the objects of `token_access` for a cluster's options. Raises InvalidRequest for an invalid map."""
    try:
        return token_access(
            installation, options.group_roles, allow_cluster_admin=options.allow_cluster_admin
        )
    except ValueError as error:
        raise InvalidRequest(str(error)) from error


def added_roles(before: ClusterOptions, after: ClusterOptions) -> Collection[RoleGrant]:
    """Return the roles that only the options `after` have, for which the cluster needs further rights."""
    return sorted(set(_roles(after)) - set(_roles(before)))


async def wait_until_enforced(account_api: KubeApi, registration: Registration, installation: str) -> None:
    """Wait until the cluster may get tokens. New admission policies and rights come into effect after a moment.

    Raises RemoteFailed with the problem if a problem remains after `ENFORCED_SECONDS`; also ApiServerRefused or
    Unavailable.

    Args:
        account_api: authenticates as this service's own account.
    """
    deadline = time.monotonic() + ENFORCED_SECONDS
    while (problem := await find_problem(account_api, registration, installation)) is not None:
        if time.monotonic() >= deadline:
            raise RemoteFailed(f"{problem} Then run the command again.")
        await asyncio.sleep(_PAUSE_SECONDS)


def _roles(options: ClusterOptions) -> Sequence[RoleGrant]:
    try:
        parsed = parse_group_roles(options.group_roles, allow_cluster_admin=options.allow_cluster_admin)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error
    return sorted({role for of_group in parsed.values() for role in of_group})


def _bound_role(binding: JsonObject, namespace: str) -> RoleGrant | None:
    reference = binding.get("roleRef")
    if not isinstance(reference, dict) or reference.get("kind") not in ("ClusterRole", "Role"):
        return None
    return RoleGrant(reference["kind"], str(reference.get("name")), namespace)
