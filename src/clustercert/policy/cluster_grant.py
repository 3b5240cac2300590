"""Converts the policy's grant to rights of a cluster's credentials: groups, one ClusterRole, or the groups' roles."""

from collections.abc import Iterable
from dataclasses import replace

from clustercert.model import Cluster, Grant
from clustercert.model.errors import Forbidden
from clustercert.model.group_roles import MAX_BINDINGS, RoleGrant, roles_of_groups
from clustercert.policy.rules import bound_grant

_ADVICE = "Ask the operator to set a role for the group (clustercert cluster update --group-role)."
LEFT_OUT = "left_out"
"""The field of a decision trace that contains the groups without roles in the cluster."""


def cluster_grant(grant: Grant, cluster: Cluster) -> Grant:
    """Return the grant, converted to the rights that the cluster's credentials can have. Raises Forbidden."""
    if cluster.credential_kind == "token":
        return _token_grant(grant, cluster)
    roles = cluster.options.credential_roles
    return bound_grant(grant, roles) if roles else grant


def require_roles(groups: Iterable[str], cluster: Cluster) -> None:
    """Raise Forbidden if the cluster's credentials are tokens, and one of the groups has no role in the cluster."""
    if cluster.credential_kind == "certificate":
        return
    missing = next((group for group in groups if group not in cluster.options.group_roles), None)
    if missing is not None:
        raise Forbidden(f"The group {missing} has no role in this cluster. {_ADVICE}")


def bound_roles(grant: Grant, cluster: Cluster) -> tuple[RoleGrant, ...]:
    """Return the roles that are bound to a token with this grant, sorted."""
    return roles_of_groups(grant.groups, cluster.options.group_roles)


def _token_grant(grant: Grant, cluster: Cluster) -> Grant:
    """Return the grant with the groups that have roles in the cluster. `left_out` contains the other groups.

    Raises Forbidden if no group has a role, if a group of the access request has no role, or if there are too many
    roles.
    """
    mapped = cluster.options.group_roles
    kept = tuple(group for group in grant.groups if group in mapped)
    left_out = tuple(group for group in grant.groups if group not in mapped)
    trace = {**grant.trace, LEFT_OUT: list(left_out)} if left_out else grant.trace
    requested = grant.access.groups if grant.access is not None else ()
    missing = next((group for group in requested if group not in mapped), None)
    if missing is not None:
        raise Forbidden(
            f"The group {missing} of the access request has no role in this cluster. {_ADVICE}", trace=trace
        )
    if not kept:
        raise Forbidden(
            f"None of your groups ({', '.join(left_out)}) has a role in this cluster. {_ADVICE}", trace=trace
        )
    granted = replace(grant, groups=kept, left_out=left_out, trace=trace)
    if (count := len(bound_roles(granted, cluster))) > MAX_BINDINGS:
        raise Forbidden(
            f"Your groups have {count} different roles in this cluster, but a token can have at most"
            f" {MAX_BINDINGS}. Ask the operator for groups with fewer roles.",
            trace=trace,
        )
    return granted
