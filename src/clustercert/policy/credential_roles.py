"""Chooses the rule whose ClusterRole a certificate is bound to, in clusters with per-credential RBAC."""

from collections.abc import Mapping
from dataclasses import replace

from clustercert.model import Grant
from clustercert.model.errors import Forbidden


def bound_grant(grant: Grant, roles: Mapping[str, str]) -> Grant:
    """Return the grant without its groups, with the rule whose ClusterRole is bound to the certificate.

    A certificate has one binding. Of several matching rules with a ClusterRole, that whose name sorts first counts, so
    that the order of the rules decides nothing. `roles` maps rules to ClusterRoles. Raises Forbidden if no matching
    rule has one.
    """
    rule = min((name for name in grant.rules if name in roles), default=None)
    if rule is None:
        raise Forbidden(
            f"This cluster has no ClusterRole for the rule {grant.rule}. Ask the operator to set one"
            " (clustercert cluster update --credential-role).",
            trace=grant.trace,
        )
    return replace(grant, rule=rule, groups=())
