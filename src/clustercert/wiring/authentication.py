"""Builds the authenticators from the settings."""

from typing import TYPE_CHECKING

from clustercert.authn.access_keys import AccessKeyAuthenticator, AccessKeyLookup, AccessKeysByForm
from clustercert.authn.credentials import Authenticator, Authenticators, TokenAuthenticator
from clustercert.authn.sessions import SessionAuthenticator
from clustercert.identity.service import Identity
from clustercert.kubernetes.cluster_connections import ClusterConnections
from clustercert.model import utc_now
from clustercert.settings import Settings
from clustercert.store.clusters.registry import ClusterQueries

if TYPE_CHECKING:
    from clustercert.authn.keystone.service import KeystoneService
    from clustercert.authn.oidc.authenticator import OidcAuthenticator


def new_authenticator(
    settings: Settings,
    identity: Identity,
    oidc: "OidcAuthenticator | None",
    keystone: "KeystoneService | None",
) -> Authenticators:
    """Return all authenticators.

    The authenticator for Keystone tokens comes before the others, because it accepts only tokens in Keystone's formats.
    """
    members: list[Authenticator] = []
    if keystone is not None:
        members.append(keystone.tokens)
    if settings.identity.built_in:
        members.append(TokenAuthenticator(identity.tokens))
    if (access_keys := _access_keys(settings, identity, keystone)) is not None:
        members.append(AccessKeyAuthenticator(access_keys, utc_now))
    if oidc is not None:
        members.append(oidc)
    members.append(SessionAuthenticator(identity.sessions))
    return Authenticators(tuple(members))


def with_issuers(
    authenticators: Authenticators, before: "OidcAuthenticator | None", oidc: "OidcAuthenticator | None"
) -> Authenticators:
    """Return the authenticators, with `oidc` in place of the former OIDC authenticator `before`.

    The other authenticators are not built again, so access keys that are locked stay locked.
    """
    others = tuple(member for member in authenticators.members if member is not before)
    return Authenticators(others if oidc is None else (*others, oidc))


def _access_keys(
    settings: Settings, identity: Identity, keystone: "KeystoneService | None"
) -> AccessKeyLookup | None:
    of_keystone = keystone.access_keys if keystone is not None else None
    if not settings.identity.built_in:
        return of_keystone
    if of_keystone is None:
        return identity.access_keys
    return AccessKeysByForm(identity.access_keys, of_keystone)


def oidc_authenticator(
    settings: Settings,
    identity: Identity,
    clusters: ClusterQueries,
    connections: ClusterConnections,
    before: "OidcAuthenticator | None" = None,
) -> "OidcAuthenticator | None":
    """Return the authenticator for the issuers in the settings, or None if the settings have no issuers.

    The new authenticator keeps the signing keys that `before` has fetched.
    """
    if not settings.identity.issuers:
        return None
    # Imported only here, because joserfc takes 5 MB of memory.
    from clustercert.authn.oidc import authenticator  # noqa: PLC0415
    from clustercert.kubernetes.service_accounts import ServiceAccounts  # noqa: PLC0415

    service_accounts = ServiceAccounts(clusters, connections)
    return authenticator.new_authenticator(
        settings.identity.issuers, identity.federation, service_accounts, utc_now, before
    )


def keystone_service(settings: Settings, identity: Identity) -> "KeystoneService | None":
    """Return the authenticators for the Keystone in the settings, or None if the settings have no Keystone."""
    if settings.identity.keystone is None:
        return None
    from clustercert.authn.keystone.service import new_keystone  # noqa: PLC0415 - most services have no Keystone

    return new_keystone(settings.identity.keystone, identity.federation, utc_now)
