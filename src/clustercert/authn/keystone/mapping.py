"""Turns Keystone's description of a credential into a user with groups and roles."""

from collections.abc import Iterable, Mapping

from clustercert.authn.keystone.answers import (
    MAX_GROUPS,
    DomainReference,
    GroupBody,
    TokenBody,
    UserReference,
)
from clustercert.authn.keystone.authority import Keystone
from clustercert.model import Domain, FederatedDomain, Group, User
from clustercert.model.errors import Unauthenticated
from clustercert.model.ids import is_user_id
from clustercert.policy.names import invisible_problem

# The maximum length of a name: with domain and prefix, it still fits into a certificate.
MAX_NAME_BYTES = 200

Roles = Mapping[str | None, frozenset[str]]


def require_undelegated(body: TokenBody) -> None:
    """Refuse a token that its user delegated with limits, because a certificate can't have these limits.

    Application credentials without access rules are accepted: their roles are those of the token.
    """
    for kind, value in (
        ("a trust", body.trust),
        ("an OAuth 1 access token", body.oauth1),
        ("a certificate-bound OAuth 2 token", body.oauth2),
    ):
        if value is not None:
            raise Unauthenticated(f"the token was made under {kind}", known=body.user.id)
    credential = body.application_credential
    if credential is not None and credential.access_rules is not None:
        raise Unauthenticated("the token's application credential has access rules", known=body.user.id)


def token_roles(keystone: Keystone, body: TokenBody) -> tuple[Roles, frozenset[str]]:
    """Return the roles by project id, and those in the whole service, of a token.

    Only a token for a project has roles in it, and only one for the scope `system` can have roles in the service.
    """
    names = [role.name for role in body.roles]
    if body.project is not None:
        return {body.project.id: project_roles(keystone, names)}, frozenset()
    if body.domain is None and body.system == {"all": True}:
        known = keystone.system_roles
        return {}, frozenset(known[name] for name in names if name in known)
    return {}, frozenset()


def project_roles(keystone: Keystone, names: Iterable[str]) -> frozenset[str]:
    """Return the local names of these roles in a project."""
    if keystone.roles is None:
        return frozenset(names)
    return frozenset(keystone.roles[name] for name in names if name in keystone.roles)


def mapped_user(keystone: Keystone, user: UserReference) -> User:
    """Return the user. Raises Unauthenticated if the service can't represent them."""
    if not is_user_id(user.id):
        raise Unauthenticated("the user's id has neither 32 nor 64 hex digits")
    if keystone.user_domains is not None and user.domain.id not in keystone.user_domains:
        raise Unauthenticated("the user's domain is not among identity.keystone.user_domains", known=user.id)
    name, domain = _named(keystone, user.name, user.domain, user.id)
    return User(user.id, name, domain)


def mapped_groups(
    keystone: Keystone, user_id: str, groups: list[GroupBody], domains: Mapping[str, DomainReference]
) -> tuple[Group, ...]:
    """Return a user's groups, sorted by name. `domains`: the domains of the groups, by id.

    Raises Unauthenticated rather than leave a group out, because without it the policy would decide wrongly.
    """
    if len(groups) > MAX_GROUPS:
        raise Unauthenticated(f"the user is in more than {MAX_GROUPS} groups", known=user_id)
    found = []
    for group in groups:
        if not is_user_id(group.id):
            raise Unauthenticated("the id of a group has neither 32 nor 64 hex digits", known=user_id)
        name, domain = _named(keystone, group.name, domains[group.domain_id], user_id)
        found.append(Group(group.id, name, domain))
    return tuple(sorted(found, key=lambda group: (group.name, group.id)))


def _named(keystone: Keystone, name: str, domain: DomainReference, user_id: str) -> tuple[str, Domain]:
    """Return the local name of a user or group, and their local domain."""
    for text in (name, domain.name):
        if invisible_problem(text) or len(text.encode()) > MAX_NAME_BYTES:
            raise Unauthenticated(
                f"a name has invisible characters, is not in Unicode NFC, or has more than {MAX_NAME_BYTES} bytes:"
                f" {text[:64]!a}",
                known=user_id,
            )
    if not keystone.prefixed:
        return name, FederatedDomain(domain.id, domain.name)
    if "/" in domain.name:
        # Otherwise, users of two domains could have one name.
        raise Unauthenticated(f"the name of the domain {domain.name[:64]!a} has a slash", known=user_id)
    return f"{keystone.name}/{domain.name}/{name}", keystone.prefix_domain
