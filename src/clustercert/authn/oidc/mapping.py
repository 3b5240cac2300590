"""Turns the claims of a verified token into a user with groups and roles."""

import hashlib
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime

from clustercert.authn.federated import FederatedUser
from clustercert.authn.oidc.claims import claim_texts, claim_value
from clustercert.authn.oidc.expressions import ClaimExpression
from clustercert.authn.oidc.issuers import Issuer, RoleGrant, derived_id
from clustercert.authn.oidc.refusal import TokenRefused
from clustercert.authn.oidc.tokens import UnverifiedToken
from clustercert.model import Group, JsonObject, User

AUTH_METHOD = "oidc"
MAX_GROUPS = 500
# The maximum length of a name: with the issuer's prefix, it still fits into a certificate.
MAX_NAME_BYTES = 200


def federated_user(issuer: Issuer, token: UnverifiedToken) -> FederatedUser:
    """Return the user whom a verified token describes. Raises TokenRefused if the claims don't allow the mapping."""
    claims, domain = token.claims, issuer.user_domain
    groups = mapped_groups(issuer, claims)
    roles, service_roles = _roles(issuer, claims, groups)
    return FederatedUser(
        issuer=issuer,
        user=User(_user_id(issuer, claims), _name(issuer, _username(issuer, claims)), domain),
        groups=tuple(
            Group(derived_id(issuer.url, "group", group), _name(issuer, group), domain) for group in groups
        ),
        roles=roles,
        service_roles=service_roles,
        only_projects=_only_projects(issuer, claims),
        expires_at=datetime.fromtimestamp(float(str(claims["exp"])), UTC),
        credential_id=hashlib.sha256(token.text.encode()).hexdigest(),
        method=AUTH_METHOD,
        revision=issuer.revision,
    )


def mapped_groups(issuer: Issuer, claims: JsonObject) -> tuple[str, ...]:
    """Return the user's groups as the issuer calls them, sorted."""
    source = issuer.mapping.groups
    if source is None:
        return ()
    if isinstance(source, ClaimExpression):
        value: object = _list_of_strings(source, claims, "groups")
    else:
        _check_overage(source, claims)
        value = claim_value(claims, source)
    texts = claim_texts(value) if value is not None else ()
    if texts is None:
        raise TokenRefused("groups", value, "a list of strings")
    if len(texts) > MAX_GROUPS:
        raise TokenRefused("groups", f"{len(texts)} groups", f"at most {MAX_GROUPS} groups")
    if issuer.mapping.strip_slash:
        texts = tuple(text.removeprefix("/") for text in texts)
    return tuple(sorted({_name_text(text, "groups") for text in texts}))


def _list_of_strings(source: ClaimExpression, claims: JsonObject, check: str) -> list[str]:
    value = source.value(claims)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise TokenRefused(check, value, "a list of strings")
    return value


def _check_overage(claim: str, claims: JsonObject) -> None:
    """Refuse a token that refers to groups elsewhere, because without groups the policy would decide wrongly.

    Source: OpenID Connect Core 1.0, 5.6.2; Microsoft identity platform, "Groups overage claim".
    """
    elsewhere = claims.get("_claim_names")
    has_groups = claim == "groups" and claims.get("hasgroups") is True
    if has_groups or (isinstance(elsewhere, dict) and claim in elsewhere):
        raise TokenRefused(
            "groups",
            "a reference to the groups instead of the groups",
            "all groups in the token. The user is in too many: let the issuer send only the groups assigned to the"
            " application, or use its roles",
        )


def _user_id(issuer: Issuer, claims: JsonObject) -> str:
    # The id is the hash of the exact claims: normalizing them would give two subjects one id.
    return derived_id(issuer.url, *(_one_text(claims, claim) for claim in issuer.mapping.subject))


def _username(issuer: Issuer, claims: JsonObject) -> str:
    source = issuer.mapping.username
    if not isinstance(source, ClaimExpression):
        return "/".join(_name_text(_one_text(claims, claim), claim) for claim in source)
    value = source.value(claims)
    if not isinstance(value, str):
        raise TokenRefused("username", value, "a string")
    return _name_text(value, "username")


def _one_text(claims: JsonObject, claim: str) -> str:
    value = claim_value(claims, claim)
    texts = None if isinstance(value, list) else claim_texts(value)
    if not texts:
        raise TokenRefused(claim, value, "a string or number")
    return _checked(texts[0], claim)


def _checked(text: str, check: str) -> str:
    """Return the string unchanged. Raises TokenRefused if characters in it could hide or disguise it."""
    # `isprintable` excludes control, format (including bidirectional), surrogate and private-use characters.
    if not text.isprintable() or text != text.strip() or not 1 <= len(text.encode()) <= MAX_NAME_BYTES:
        raise TokenRefused(check, text, f"1 to {MAX_NAME_BYTES} bytes of printable text")
    return text


def _name_text(text: str, check: str) -> str:
    """Return a name unchanged. Raises TokenRefused unless it is in Unicode NFC."""
    # Converting other forms would give two users or groups of the issuer one name.
    if not unicodedata.is_normalized("NFC", _checked(text, check)):
        raise TokenRefused(check, text, "text in Unicode normalization form C")
    return text


def _name(issuer: Issuer, name: str) -> str:
    return f"{issuer.name}/{name}" if issuer.mapping.prefixed else name


def _roles(
    issuer: Issuer, claims: JsonObject, groups: Sequence[str]
) -> tuple[dict[str | None, frozenset[str]], frozenset[str]]:
    """Return the roles by project id, and those in the whole service."""
    roles: dict[str | None, frozenset[str]] = {}
    service_roles: frozenset[str] = frozenset()
    for grant in issuer.grants:
        if not _is_granted(grant, claims, groups):
            continue
        if grant.in_service:
            service_roles |= {grant.role}
            continue
        for project in grant.projects if grant.projects is not None else (None,):
            roles[project] = roles.get(project, frozenset()) | {grant.role}
    return roles, service_roles


def _is_granted(grant: RoleGrant, claims: JsonObject, groups: Sequence[str]) -> bool:
    if grant.groups is not None and not grant.groups.match(groups):
        return False
    if not all(check.is_met(claims) for check in grant.claims):
        return False
    # Any other value than true grants nothing.
    return grant.condition is None or grant.condition.value(claims) is True


def _only_projects(issuer: Issuer, claims: JsonObject) -> frozenset[str] | None:
    source = issuer.mapping.projects
    if source is None:
        return None
    if isinstance(source, ClaimExpression):
        return frozenset(_list_of_strings(source, claims, "projects"))
    value = claim_value(claims, source)
    texts = claim_texts(value) if value is not None else ()
    if texts is None:
        raise TokenRefused(source, value, "a list of project ids")
    return frozenset(texts)
