"""Chooses the rule whose ClusterRole a certificate is bound to, in clusters with per-credential RBAC."""

from collections.abc import Mapping
from dataclasses import replace

from clustercert.model import Grant
from clustercert.model.errors import Forbidden


def bound_grant(grant: Grant, roles: Mapping[str, str]) -> Grant:
    """Return the grant without its groups, with the rule whose ClusterRole is bound to the certificate.

    A certificate has one binding, so only the first matching rule with a ClusterRole counts. `roles` maps rules to
    ClusterRoles. Raises Forbidden if no matching rule has one.
    """
    rule = next((name for name in grant.rules if name in roles), None)
    if rule is None:
        raise Forbidden(
            f"This cluster has no ClusterRole for the rule {grant.rule}. Ask the operator to set one"
            " (clustercert cluster update --credential-role).",
            trace=grant.trace,
        )
    return replace(grant, rule=rule, groups=())
