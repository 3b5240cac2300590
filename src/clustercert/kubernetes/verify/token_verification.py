"""Verifies a cluster whose credentials are tokens, by using two temporary credentials at the API server.

The first credential has the roles of the cluster's groups. The second has none, so its rights are those that every
service account of the cluster has.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from clustercert.kube_api import UNEXPECTED_RESPONSE, ApiServerRefused, KubeApi, segment
from clustercert.kubernetes.cluster_connections import CertificateIssuer, Opener
from clustercert.kubernetes.cluster_objects import list_objects, reference_of
from clustercert.kubernetes.setup.token_access import token_access
from clustercert.kubernetes.token_look import look
from clustercert.kubernetes.token_roles import dangers
from clustercert.kubernetes.verify.certificates import LIFETIME, NOTE, verifier
from clustercert.kubernetes.verify.probe import CheckFailed, NotAuthenticated, Permission, Probe
from clustercert.kubernetes.verify.verification import CheckResult, Passed, check_result
from clustercert.model import Cluster, Grant, Issued, IssueRequest, JsonObject, Origin
from clustercert.model.errors import ClustercertError, RemoteFailed
from clustercert.model.group_roles import MAX_BINDINGS, RoleGrant, roles_of_groups
from clustercert.model.kubernetes import (
    ACCESS_NAMESPACE,
    ISSUER_ACCOUNT,
    SERVICE_ACCOUNT_PREFIX,
    TOKEN_ID,
    USERS_NAMESPACE,
    VERIFIER,
)
from clustercert.model.token_objects import RBAC
from clustercert.policy.lifetime import BACKDATE

T = TypeVar("T")

_POLL_SECONDS = 0.1
# In this namespace, only roles of the whole cluster give rights.
_UNMAPPED = "kube-system"
# The number of rights, or of others' accesses, that a message names.
_MAX_NAMED = 5
_APPLY = (
    "Write the objects again: `clustercert cluster update CLUSTER --from-kubeconfig FILE --group-role GROUP=ROLE`, with"
    " a role that the group has already."
)
# The users and the group of Kubernetes' own components. Source: Kubernetes, "Using RBAC Authorization", "Core component
# roles". Any other name, also one that begins with `system:`, may belong to somebody.
_COMPONENTS = frozenset({"system:apiserver", "system:kube-controller-manager", "system:kube-scheduler"})
_COMPONENT_PREFIXES = ("system:node:", f"{SERVICE_ACCOUNT_PREFIX}kube-system:")
_NODES = "system:nodes"

# A verb, API group, resource (or path) and name of an object.
Access = tuple[str, str, str, str]


Others = tuple[str, ...]
WithAdministrator = Callable[[Callable[[KubeApi], Awaitable[Others]]], Awaitable[Others]]


@dataclass(frozen=True, slots=True)
class VerifiedTokens:
    """The parts of this service that a verification uses.

    Attributes:
        revoke: revokes a credential that is no longer needed.
        installation: the id of this installation, see `model.kubernetes.installation_id`.
        origin: where the verification runs, for audit events.
    """

    issuer: CertificateIssuer
    revoke: Callable[[Issued], Awaitable[None]]
    connections: Opener
    installation: str
    origin: Origin


@dataclass(slots=True)
class TokenVerification:
    """Runs the checks of a cluster, in order.

    Attributes:
        seconds: how long a revocation may take to become effective.
        administrator: runs work with an administrator's credential; None without one.
        notes: sentences for the operator, after `run`.
    """

    service: VerifiedTokens
    cluster: Cluster
    seconds: float
    administrator: "WithAdministrator | None" = None
    notes: list[str] = field(default_factory=list)
    _issued: list[Issued] = field(default_factory=list)
    _probes: list[Probe] = field(default_factory=list)
    _mapped: dict[RoleGrant, frozenset[Access]] = field(default_factory=dict)

    def webhook_problem(self) -> str | None:
        """Return None, because no webhook enforces the revocation of tokens."""
        return None

    async def run(self, report: Callable[[int, int], object]) -> Sequence[CheckResult]:
        """Run all checks and return their results. After a failure, the remaining checks are skipped.

        Always revokes the credentials at the end. Raises ClustercertError if the store fails.

        Args:
            report: called before each check, with the number of checks that are done, and of all checks.
        """
        results: list[CheckResult] = []
        async with AsyncExitStack() as stack:
            checks: dict[str, Callable[[], Awaitable[Passed]]] = {
                "look": self._look,
                "issue": lambda: self._issue_two(stack),
                "authenticate": self._authenticate,
                "rights": self._compare_rights,
                "own account": self._compare_own_rights,
                "revoke": self._revoke_one,
                "other credential": self._use_other,
                "other users": self._find_others,
            }
            for name, check in checks.items():
                report(len(results), len(checks))
                if any(result.result == "failed" for result in results):
                    results.append(CheckResult(name, "skipped", None, "an earlier check failed"))
                else:
                    results.append(await check_result(name, lambda check=check: _explained(check)))  # type: ignore[misc] # bound now
        return results

    @property
    def _groups(self) -> tuple[str, ...]:
        """As many groups as one credential can have the roles of."""
        chosen: list[str] = []
        options = self.cluster.options
        for group in sorted(options.group_roles):
            if len(roles_of_groups([*chosen, group], options.group_roles)) <= MAX_BINDINGS:
                chosen.append(group)
        return tuple(chosen)

    @property
    def _roles(self) -> tuple[RoleGrant, ...]:
        return roles_of_groups(self._groups, self.cluster.options.group_roles)

    @property
    def _namespaces(self) -> list[str]:
        """The mapped namespaces, and one without a mapped role."""
        return sorted({_UNMAPPED, *(role.namespace for role in self._roles if role.namespace)})

    async def _look(self) -> Passed:
        found = await self._call(lambda api: look(api, self.cluster, self.service.installation))
        if found.problem is not None:
            raise CheckFailed(found.problem, _APPLY)
        if found.unusable:
            role, reason = next(iter(found.unusable.items()))
            raise CheckFailed(f"{role} can't be given: {reason}", _APPLY)
        if found.excess:
            raise CheckFailed(
                f"the service's own account may also {', '.join(found.excess)}",
                "Delete the bindings that give it these rights.",
            )
        for text, rights in found.dangers.items():
            self.notes.append(
                f"The holder of {text} can {', '.join(rights)}, and so keep access after a revocation."
            )
        return Passed(f"Kubernetes {found.version}, and the admission policies deny what they must")

    async def _issue_two(self, stack: AsyncExitStack) -> Passed:
        now = datetime.now(UTC).replace(microsecond=0)
        caller = verifier(self.cluster, (), self.service.origin)
        for groups in (self._groups, ()):
            grant = Grant(
                rule=None,
                username=VERIFIER,
                groups=groups,
                not_before=now - BACKDATE,
                not_after=now + LIFETIME,
            )
            try:
                issued = await self.service.issuer.issue_granted(
                    caller, self.cluster, grant, IssueRequest(reason=NOTE, credential="token"), now
                )
            except ClustercertError as error:
                raise CheckFailed(error.message, "No credential can be issued for this cluster.") from error
            stack.push_async_callback(self.service.revoke, issued)
            if issued.token is None:
                raise RuntimeError("a credential was issued without its token")
            api = await stack.enter_async_context(self._new_api())
            api.use_token(issued.token.text)
            self._issued.append(issued)
            self._probes.append(Probe(api))
        return Passed(f"two credentials: one with the roles of {', '.join(self._groups)}, and one with none")

    def _new_api(self) -> KubeApi:
        return KubeApi(self.cluster.internal_url, self.cluster.server_ca_pem, None)

    async def _authenticate(self) -> Passed:
        token = self._issued[0].token
        if token is None:
            raise RuntimeError("a credential was issued without its token")
        identity = await self._probes[0].who_am_i()
        expected = f"{SERVICE_ACCOUNT_PREFIX}{USERS_NAMESPACE}:{token.account}"
        if identity.username != expected or identity.credential_ids != (f"{TOKEN_ID}{token.jti}",):
            raise CheckFailed(
                f"the cluster accepted the token as user {identity.username} with the id "
                f"{', '.join(identity.credential_ids) or 'none'}",
                "A proxy may rewrite identities: register the API server's own address.",
            )
        return Passed(f"accepted as {identity.username}")

    async def _compare_rights(self) -> Passed:
        """Check that the first credential has the rights of its roles, and otherwise those of the second."""
        for role in self._roles:
            self._mapped[role] = await self._call(lambda api, role=role: _rules_of_role(api, role))  # type: ignore[misc] # bound now
        everybody: set[str] = set()
        for namespace in self._namespaces:
            has, common = [await _rules(each.api, namespace) for each in self._probes]
            mapped = {
                access
                for role, accesses in self._mapped.items()
                for access in accesses
                if role.namespace in ("", namespace)
            }
            _require_equal("a credential", namespace, has - common, mapped - common)
            everybody |= {_shown(each) for each in common if each[2] and not each[2].startswith("/")}
        self.notes.append(
            "Every service account of this cluster may also: "
            f"{_named(sorted(everybody)) or 'nothing'}. A revocation ends this with the account."
        )
        return Passed(f"the rights of {', '.join(map(str, self._roles))}, and no others")

    async def _compare_own_rights(self) -> Passed:
        options = self.cluster.options
        documents = token_access(
            self.service.installation, options.group_roles, allow_cluster_admin=options.allow_cluster_admin
        )
        spaces = sorted({*self._namespaces, USERS_NAMESPACE, ACCESS_NAMESPACE})
        for namespace in spaces:
            has = await self._call(lambda api, namespace=namespace: _rules(api, namespace))  # type: ignore[misc] # bound now
            common = await _rules(self._probes[1].api, namespace)
            expected = {
                access
                for each in documents
                if each["kind"] in ("ClusterRole", "Role") and reference_of(each).namespace in ("", namespace)
                for access in _accesses(each.get("rules"))
            }
            _require_equal("the service's own account", namespace, has - common, expected - common)
        return Passed(f"{ACCESS_NAMESPACE}:{ISSUER_ACCOUNT} has its rights, and no others")

    async def _revoke_one(self) -> Passed:
        """Revoke the first credential, and measure until its rights end, and until its token is refused."""
        probe, permission = self._probes[0], self._permission()
        await self.service.revoke(self._issued[0])
        start, without_rights = time.monotonic(), None
        while True:
            try:
                if without_rights is None and not await probe.is_allowed(permission):
                    without_rights = time.monotonic() - start
                await probe.who_am_i()
            except NotAuthenticated:
                refused = time.monotonic() - start
                ended = refused if without_rights is None else without_rights
                return Passed(
                    f"rights ended after {ended:.1f} s, and the token was refused after {refused:.1f} s",
                    round(ended, 2),
                )
            if time.monotonic() - start >= self.seconds:
                break
            await asyncio.sleep(_POLL_SECONDS)
        what = "has its rights" if without_rights is None else "was accepted"
        raise CheckFailed(
            f"the credential still {what} {self.seconds:.0f} seconds after it was revoked",
            "The running service deletes bindings and accounts: check that `clustercert serve` runs, and see its log.",
        )

    def _permission(self) -> Permission:
        """A permission that only a mapped role gives."""
        for role, accesses in self._mapped.items():
            for verb, group, resource, name in sorted(accesses):
                if resource and not resource.startswith("/") and not name and "/" not in resource:
                    return Permission(verb, resource, group, role.namespace or None)
        raise CheckFailed(
            "no mapped role has a right that can be tested",
            "Map a role that allows a verb on a resource, without resourceNames.",
        )

    async def _use_other(self) -> Passed:
        try:
            await self._probes[1].who_am_i()
        except NotAuthenticated as failed:
            raise CheckFailed("the other credential is refused too", "See the service's log.") from failed
        return Passed("the other credential still works")

    async def _find_others(self) -> Passed:
        if self.administrator is None:
            return Passed("add --from-kubeconfig with an administrator's kubeconfig", skipped=True)
        found = await self.administrator(others)
        self.notes += found
        count = f"{len(found)} {'binding' if len(found) == 1 else 'bindings'}"
        return Passed(f"{count} of others reach the accounts; see the notes" if found else "nobody else")

    async def _call(self, work: Callable[[KubeApi], Awaitable[T]]) -> T:
        return await self.service.connections.call(self.cluster, work)


async def _explained(check: Callable[[], Awaitable[Passed]]) -> Passed:
    """Turn errors of the connection into failed checks."""
    try:
        return await check()
    except CheckFailed:
        raise
    except ApiServerRefused as refused:
        raise CheckFailed(f"HTTP {refused.http_status} {refused.server_message}".strip(), _APPLY) from refused
    except ClustercertError as error:
        raise CheckFailed(
            error.message, "Check that this machine reaches the registered address of the cluster."
        ) from error


async def others(api: KubeApi) -> tuple[str, ...]:
    """Return a sentence for each binding with which others could act as the accounts of this service.

    Args:
        api: authenticates as an administrator.
    """
    rules = {("", each_name(each)): each.get("rules") for each in await list_objects(api, "ClusterRole")}
    bindings = [("", each) for each in await list_objects(api, "ClusterRoleBinding")]
    for namespace in (USERS_NAMESPACE, ACCESS_NAMESPACE):
        rules |= {
            (namespace, each_name(each)): each.get("rules")
            for each in await list_objects(api, "Role", namespace)
        }
        bindings += [(namespace, each) for each in await list_objects(api, "RoleBinding", namespace)]
    found: list[str] = []
    for namespace, binding in bindings:
        reference, subjects = binding.get("roleRef"), binding.get("subjects") or []
        if not isinstance(reference, dict) or not isinstance(subjects, list):
            raise RemoteFailed(UNEXPECTED_RESPONSE)
        place = "" if reference.get("kind") == "ClusterRole" else namespace
        rights = dangers(_rule_list(rules.get((place, str(reference.get("name"))))))
        names = [name for each in subjects if (name := _other_subject(each))]
        if rights and names:
            where = f"in {namespace}" if namespace else "in the whole cluster"
            found.append(
                f"{', '.join(names)} can {', '.join(rights)} {where} ({reference.get('kind')} "
                f"{reference.get('name')})."
            )
    return tuple(found)


def each_name(document: JsonObject) -> str:
    """Return the name of an item of a list."""
    return reference_of(document, "item").name


def _other_subject(subject: object) -> str:
    """Return a subject of a binding, or "" for this service and for Kubernetes' own components."""
    if not isinstance(subject, dict):
        return ""
    kind, name, namespace = (str(subject.get(each) or "") for each in ("kind", "name", "namespace"))
    if kind == "ServiceAccount":
        is_ours = (namespace, name) == (ACCESS_NAMESPACE, ISSUER_ACCOUNT) or namespace == USERS_NAMESPACE
        return "" if is_ours or namespace == "kube-system" else f"{kind} {namespace}/{name}"
    is_component = (
        name in _COMPONENTS or name.startswith(_COMPONENT_PREFIXES) if kind == "User" else name == _NODES
    )
    return "" if is_component else f"{kind} {name}"


async def _rules(api: KubeApi, namespace: str) -> frozenset[Access]:
    """Return what the authorizers that can list rights allow the caller in a namespace."""
    review: JsonObject = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    answer = await api.create("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", review)
    status = answer.get("status")
    if not isinstance(status, dict):
        raise RemoteFailed(UNEXPECTED_RESPONSE)
    return frozenset(
        access for name in ("resourceRules", "nonResourceRules") for access in _accesses(status.get(name))
    )


async def _rules_of_role(api: KubeApi, role: RoleGrant) -> frozenset[Access]:
    plural = "clusterroles" if role.kind == "ClusterRole" else "roles"
    where = "" if role.kind == "ClusterRole" else f"/namespaces/{segment(role.namespace)}"
    document = await api.get(f"/apis/{RBAC}/v1{where}/{plural}/{segment(role.name)}")
    # In a namespace, paths that are no resources give no rights.
    return frozenset(
        each for each in _accesses(document.get("rules")) if not role.namespace or not each[2].startswith("/")
    )


def _accesses(rules: object) -> Iterator[Access]:
    for rule in _rule_list(rules):
        verbs = _texts(rule, "verbs")
        for path in _texts(rule, "nonResourceURLs"):
            yield from ((verb, "", path if path.startswith("/") else f"/{path}", "") for verb in verbs)
        for group in _texts(rule, "apiGroups"):
            for resource in _texts(rule, "resources"):
                for name in _texts(rule, "resourceNames") or [""]:
                    yield from ((verb, group, resource, name) for verb in verbs)


def _rule_list(rules: object) -> list[Mapping[str, Any]]:
    found = rules if isinstance(rules, list) else []
    if not all(isinstance(each, dict) for each in found):
        raise RemoteFailed(UNEXPECTED_RESPONSE)
    return found


def _texts(rule: Mapping[str, Any], name: str) -> list[str]:
    value = rule.get(name) or []
    return [str(each) for each in value] if isinstance(value, list) else []


def _require_equal(who: str, namespace: str, has: Iterable[Access], wanted: Iterable[Access]) -> None:
    """Raise CheckFailed if rights in a namespace differ from those that are wanted."""
    has, wanted = set(has), set(wanted)
    if more := has - wanted:
        raise CheckFailed(
            f"{who} has further rights in {namespace}: {_named(sorted(map(_shown, more)))}",
            "Delete the bindings that give these rights, such as bindings of the group system:serviceaccounts:"
            f"{USERS_NAMESPACE}.",
        )
    if missing := wanted - has:
        raise CheckFailed(
            f"{who} lacks rights in {namespace}: {_named(sorted(map(_shown, missing)))}", _APPLY
        )


def _shown(access: Access) -> str:
    verb, group, resource, name = access
    return f"{verb} {f'{resource}.{group}' if group else resource}{f' {name}' if name else ''}"


def _named(texts: Sequence[str]) -> str:
    more = [f"{len(texts) - _MAX_NAMED} more"] if len(texts) > _MAX_NAMED else []
    return ", ".join([*texts[:_MAX_NAMED], *more])
