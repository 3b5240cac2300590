"""Turns the claims of a verified token into a user with groups and roles."""

import hashlib
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime

from clustercert.authn.federated import FederatedUser
from clustercert.authn.oidc.claims import ClaimExpression, TokenRefused, claim_path, claim_texts, claim_value
from clustercert.authn.oidc.issuers import OidcIssuer, derived_id
from clustercert.authn.oidc.tokens import MAX_SUBJECT_BYTES, UnverifiedToken, login_time
from clustercert.model import Group, JsonObject, User

AUTH_METHOD = "oidc"
MAX_GROUPS = 500
# The maximum length of a name. A name of this length fits into a certificate together with the issuer's prefix.
MAX_NAME_BYTES = 200
# Prefix of the names of users whose subject is too long for a name.
_HASHED = "id:"


def federated_user(issuer: OidcIssuer, token: UnverifiedToken) -> FederatedUser:
    """Return the user described by a verified token. Raises TokenRefused if the claims can't be mapped."""
    claims, domain = token.claims, issuer.user_domain
    user_id = _user_id(issuer, claims)
    groups = mapped_groups(issuer, claims)
    roles, service_roles = _roles(issuer, claims, groups)
    logged_in_at, keeps_login_time = login_time(issuer, token)
    return FederatedUser(
        issuer=issuer,
        user=User(user_id, _name(issuer, _username(issuer, claims, user_id)), domain),
        groups=tuple(
            Group(derived_id("group", issuer.url, group), _name(issuer, group), domain) for group in groups
        ),
        roles=roles,
        service_roles=service_roles,
        expires_at=datetime.fromtimestamp(float(str(claims["exp"])), UTC),
        credential_id=hashlib.sha256(token.text.encode()).hexdigest(),
        method=AUTH_METHOD,
        logged_in_at=logged_in_at,
        keeps_login_time=keeps_login_time,
    )


def mapped_groups(issuer: OidcIssuer, claims: JsonObject) -> tuple[str, ...]:
    """Return the names of the user's groups at the issuer, sorted."""
    source = issuer.mapping.groups
    if source is None:
        return ()
    if isinstance(source, ClaimExpression):
        value: object = _list_of_strings(source, claims)
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


def _list_of_strings(source: ClaimExpression, claims: JsonObject) -> list[str]:
    value = source.value(claims)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise TokenRefused(source.setting, value, f"a list of strings as the value of {source.source}")
    return value


def _check_overage(claim: str, claims: JsonObject) -> None:
    """Refuse a token that contains only a reference to the groups: without the groups, the policy would decide wrongly.

    Source: OpenID Connect Core 1.0, section 5.6.2; Microsoft identity platform, "Groups overage claim".
    """
    elsewhere = claims.get("_claim_names")
    outermost = claim_path(claim)[0]
    # Some issuers write the boolean `hasgroups` as a string.
    has_groups = outermost == "groups" and str(claims.get("hasgroups")).lower() == "true"
    if has_groups or (isinstance(elsewhere, dict) and outermost in elsewhere):
        raise TokenRefused(
            "groups",
            "a reference to the groups instead of the groups",
            "all groups in the token. The user is in too many groups: configure the issuer to send only groups that"
            " are assigned to the application, or use the application's roles",
        )


def _user_id(issuer: OidcIssuer, claims: JsonObject) -> str:
    # Hash the exact claims: if they were normalized, two subjects could get the same id.
    texts = (_one_text(claims, claim, MAX_SUBJECT_BYTES) for claim in issuer.mapping.subject)
    return derived_id("user", issuer.url, *texts)


def _username(issuer: OidcIssuer, claims: JsonObject, user_id: str) -> str:
    """Return the user's name: the mapped claims joined with slashes.

    If the mapped claims are the subject, and are too long or begin with `id:`, returns `id:` and the user id instead.
    """
    mapping = issuer.mapping
    joined = mapping.username or mapping.subject
    longest = MAX_SUBJECT_BYTES if mapping.username is None else MAX_NAME_BYTES
    texts = [_name_text(_one_text(claims, claim, longest), claim, longest) for claim in joined]
    for claim, text in zip(joined, texts[:-1], strict=False):
        if "/" in text:
            # If a claim contained a slash, two users could get the same name.
            raise TokenRefused(
                claim, text, "text without a slash, because a slash joins the claims of the name"
            )
    name = "/".join(texts)
    is_long = len(name.encode()) > MAX_NAME_BYTES
    if mapping.username is None:
        return f"{_HASHED}{user_id}" if is_long or name.startswith(_HASHED) else name
    if is_long:
        raise TokenRefused("username", name, f"at most {MAX_NAME_BYTES} bytes")
    return name


def _one_text(claims: JsonObject, claim: str, longest: int) -> str:
    value = claim_value(claims, claim)
    # A boolean has too few values to identify anybody.
    texts = None if isinstance(value, list | bool) else claim_texts(value)
    if not texts:
        raise TokenRefused(claim, value, "a string or number")
    return _checked(texts[0], claim, longest)


def _checked(text: str, check: str, longest: int) -> str:
    """Check a string from a claim, and return the string unchanged.

    Raises TokenRefused for invisible characters, leading or trailing spaces, or a wrong length.
    """
    # `isprintable` excludes control, format (including bidirectional), surrogate and private-use characters.
    if not text.isprintable() or text != text.strip() or not 1 <= len(text.encode()) <= longest:
        raise TokenRefused(check, text, f"1 to {longest} bytes of printable text")
    return text


def _name_text(text: str, check: str, longest: int = MAX_NAME_BYTES) -> str:
    """Check a name, and return the name unchanged. Raises TokenRefused if the name is not in Unicode NFC."""
    # Don't normalize: two users or groups of the issuer could get the same name.
    if not unicodedata.is_normalized("NFC", _checked(text, check, longest)):
        raise TokenRefused(check, text, "text in Unicode normalization form C")
    return text


def _name(issuer: OidcIssuer, name: str) -> str:
    return f"{issuer.name}/{name}" if issuer.prefix_names else name


def _roles(
    issuer: OidcIssuer, claims: JsonObject, groups: Sequence[str]
) -> tuple[dict[str | None, frozenset[str]], frozenset[str]]:
    """Return the roles by project (as in the settings; None means all projects), and the roles in the whole service."""
    roles: dict[str | None, frozenset[str]] = {}
    service_roles: frozenset[str] = frozenset()
    for grant in issuer.roles:
        if not grant.is_granted(claims, groups):
            continue
        if grant.service:
            service_roles |= {grant.role}
            continue
        for project in grant.projects if grant.projects is not None else (None,):
            roles[project] = roles.get(project, frozenset()) | {grant.role}
    return roles, service_roles
