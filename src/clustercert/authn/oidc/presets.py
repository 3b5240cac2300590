"""Claims of well-known issuers, as their documentation describes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from clustercert.authn.oidc.issuers import ClaimMapping

PresetName = Literal["keycloak", "dex", "entra", "github", "gitlab", "kubernetes"]


@dataclass(frozen=True, slots=True)
class Preset:
    """Defaults for an issuer.

    Attributes:
        required: claims that every token must have.
        pinned: the settings must check one of these claims, because everybody can get a token from the issuer.
        scopes: what people's clients request.
    """

    mapping: ClaimMapping
    max_age: timedelta = timedelta(hours=24)
    required: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ("openid", "profile", "groups")


PRESETS: Mapping[PresetName, Preset] = {
    # Source: Keycloak server administration guide, "Group Membership" mapper, whose default writes full paths.
    "keycloak": Preset(
        ClaimMapping(username=("preferred_username",), groups="groups", strip_slash=True),
        # Keycloak refuses scopes that a client does not have. It sends refresh tokens without a scope for them.
        scopes=("openid", "profile"),
    ),
    # Source: Dex, "Custom scopes, claims and client features". `name` is a display name that users may choose.
    "dex": Preset(
        ClaimMapping(groups="groups"),
        scopes=("openid", "profile", "groups", "offline_access"),
    ),
    # Source: Microsoft identity platform, "ID token claims reference". `sub` differs for each application.
    # `preferred_username` can change, and must not be used for authorization. An issuer's URL names one tenant.
    "entra": Preset(
        ClaimMapping(subject=("tid", "oid"), username=("oid",), groups="groups"),
        required=("tid", "oid"),
        scopes=("openid", "profile", "offline_access"),
    ),
    # Source: GitHub Docs, "OpenID Connect reference". Ids stay when a repository is renamed or its name is used again.
    # GitHub Enterprise has issuers of its own, with the same claims.
    "github": Preset(
        ClaimMapping(subject=("repository_id",), username=("repository",)),
        required=("repository_id", "repository_owner_id", "ref", "event_name"),
        pinned=("repository_id", "repository_owner_id", "enterprise_id"),
    ),
    # Source: GitLab Docs, "OpenID Connect (OIDC) authentication using ID tokens".
    "gitlab": Preset(
        ClaimMapping(subject=("project_id",), username=("project_path",)),
        required=("project_id", "namespace_id", "ref", "ref_type", "ref_protected"),
        pinned=("project_id", "namespace_id"),
    ),
    # Source: Kubernetes documentation, "Managing Service Accounts", "Schema for service account private claims".
    "kubernetes": Preset(
        ClaimMapping(
            subject=("sub", "/kubernetes.io/serviceaccount/uid"),
            username=("/kubernetes.io/namespace", "/kubernetes.io/serviceaccount/name"),
        ),
        # The kubelet renews a token when it is a day old.
        max_age=timedelta(hours=25),
        required=(
            "/kubernetes.io/namespace",
            "/kubernetes.io/serviceaccount/name",
            "/kubernetes.io/serviceaccount/uid",
        ),
    ),
}
