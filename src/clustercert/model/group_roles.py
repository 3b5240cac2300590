"""Roles of Kubernetes that the groups of the policy get in a cluster whose credentials are tokens.

A role is written `clusterrole/NAME` for the whole cluster, or `clusterrole/NAME@NAMESPACE` or `role/NAME@NAMESPACE` for
one namespace.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from clustercert.model.kubernetes import ACCESS_NAMESPACE, USERS_NAMESPACE

MAX_GROUPS = 64
"""The maximum number of groups with roles in one cluster."""

MAX_ROLES = 256
"""The maximum number of different roles in one cluster. An admission policy lists them."""

MAX_BINDINGS = 20
"""The maximum number of bindings of one credential."""

CLUSTER_ADMIN = "cluster-admin"
"""The ClusterRole that allows everything. A holder of this role can create access that no revocation ends."""

Kind = Literal["ClusterRole", "Role"]

_KINDS: Mapping[str, Kind] = {"clusterrole": "ClusterRole", "role": "Role"}
_WORDS = {kind: word for word, kind in _KINDS.items()}
# Kubernetes allows more characters in the names of roles, but no known role has such characters. An at sign would be
# ambiguous.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._-]{0,252}", re.ASCII)
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_SYSTEM = "system:"
_RESERVED_PREFIXES = ("kube-", "openshift-")
_RESERVED_NAMESPACES = frozenset({USERS_NAMESPACE, ACCESS_NAMESPACE})
# In every cluster, these roles allow their holders to start pods, create tokens and impersonate service accounts.
_ONLY_IN_NAMESPACES = frozenset({"admin", "edit"})


@dataclass(frozen=True, slots=True, order=True)
class RoleGrant:
    """A ClusterRole or Role, and where it is bound.

    Attributes:
        kind: the kind of the role.
        name: the name of the role.
        namespace: the namespace in which the role is bound; empty for the whole cluster. A Role has a namespace.
    """

    kind: Kind
    name: str
    namespace: str = ""

    @classmethod
    def parse(cls, text: str) -> "RoleGrant":
        """Parse the written form. Raises ValueError with a message for the operator."""
        word, slash, rest = text.partition("/")
        name, at, namespace = rest.partition("@")
        kind = _KINDS.get(word)
        if (
            kind is None
            or not slash
            or not _NAME.fullmatch(name)
            or (at and not _NAMESPACE.fullmatch(namespace))
        ):
            raise ValueError(
                f"{text[:300]!r} is not a role. Write clusterrole/NAME for the whole cluster, or "
                "clusterrole/NAME@NAMESPACE or role/NAME@NAMESPACE for one namespace."
            )
        if kind == "Role" and not namespace:
            raise ValueError(f"{text} lacks its namespace. Write {text}@NAMESPACE.")
        return cls(kind, name, namespace)

    def __str__(self) -> str:
        where = f"@{self.namespace}" if self.namespace else ""
        return f"{_WORDS[self.kind]}/{self.name}{where}"


def parse_group_roles(
    group_roles: Mapping[str, Sequence[str]], *, allow_cluster_admin: bool
) -> dict[str, tuple[RoleGrant, ...]]:
    """Parse and check the roles of all groups. Sorts the roles of each group, and removes duplicates.

    Raises:
        ValueError: a group or role may not be in the map. The message is for the operator.
    """
    if len(group_roles) > MAX_GROUPS:
        raise ValueError(
            f"{len(group_roles)} groups have roles. Give at most {MAX_GROUPS} groups roles in one cluster."
        )
    parsed = {group: _parse_roles(group, texts, allow_cluster_admin) for group, texts in group_roles.items()}
    different = {role for roles in parsed.values() for role in roles}
    if len(different) > MAX_ROLES:
        raise ValueError(
            f"The groups have {len(different)} different roles. Use at most {MAX_ROLES} in one cluster."
        )
    return parsed


def roles_of_groups(groups: Iterable[str], group_roles: Mapping[str, Sequence[str]]) -> tuple[RoleGrant, ...]:
    """Return the roles that the groups have together, sorted and without duplicates.

    Groups without an entry give no role. Raises ValueError if a role is malformed.
    """
    return tuple(sorted({RoleGrant.parse(text) for group in groups for text in group_roles.get(group, ())}))


def _parse_roles(group: str, texts: Sequence[str], allow_cluster_admin: bool) -> tuple[RoleGrant, ...]:
    if not group or group.startswith(_SYSTEM):
        raise ValueError(
            f"The group {group!r} can't have roles. Name a group of the policy that does not begin with {_SYSTEM}"
        )
    if not texts:
        raise ValueError(f"The group {group!r} has no role. Name a role, or remove the group.")
    roles = tuple(sorted({RoleGrant.parse(text) for text in texts}))
    if len(roles) > MAX_BINDINGS:
        raise ValueError(
            f"The group {group!r} has {len(roles)} roles, but a credential can have at most {MAX_BINDINGS}"
            " bindings. Give the group fewer roles."
        )
    for role in roles:
        if problem := _problem(role, allow_cluster_admin):
            raise ValueError(f"The group {group!r} can't have the role {role}. {problem}")
    return roles


def _problem(role: RoleGrant, allow_cluster_admin: bool) -> str | None:
    """Return what is wrong with a role in the map, and what to do; None if nothing is wrong."""
    if role.name.startswith(_SYSTEM):
        return f"Roles that begin with {_SYSTEM} belong to Kubernetes. Name a role of your own."
    if role.namespace in _RESERVED_NAMESPACES or role.namespace.startswith(_RESERVED_PREFIXES):
        return f"The namespace {role.namespace} belongs to the cluster or to clustercert. Name another namespace."
    if role.kind == "ClusterRole" and role.name == CLUSTER_ADMIN and not allow_cluster_admin:
        return (
            "A holder of this role can create access that no revocation ends. Set allow_cluster_admin if you"
            " accept this."
        )
    if role.kind == "ClusterRole" and not role.namespace and role.name in _ONLY_IN_NAMESPACES:
        return (
            "In the whole cluster, a holder of this role can act as any service account, and keep access"
            f" after a revocation. Name a namespace: {role}@NAMESPACE."
        )
    return None
