"""Access keys stored in Keystone as EC2 credentials. `authn.access_keys` verifies the signatures."""

import asyncio
import hashlib
import itertools
from dataclasses import dataclass, field

import structlog

from clustercert.authn.access_keys import SigningKey
from clustercert.authn.federated import FederatedLookup, FederatedUser
from clustercert.authn.keystone.answers import (
    DomainReference,
    Ec2Blob,
    UnusableAnswer,
    UserReference,
    parsed,
)
from clustercert.authn.keystone.client import Found, KeystoneDirectory, Lookups, mapped_user, project_roles
from clustercert.authn.keystone.settings import Keystone
from clustercert.model import Caller, Origin
from clustercert.model.errors import Unauthenticated

ACCESS_KEY_METHOD = "keystone_key"

logger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class KeystoneKey(SigningKey):
    """An access key from Keystone, which is valid for one project."""

    project_id: str = ""


@dataclass(frozen=True, slots=True)
class KeystoneAccessKeys:
    """Looks up access keys and their users. Secrets are kept in memory only.

    The user's roles and groups are read after the signature is verified, so that a wrong signature and an unknown
    access key both cost one request to Keystone.
    """

    keystone: Keystone
    directory: KeystoneDirectory
    identity: FederatedLookup
    keys: Lookups[KeystoneKey] = field(default_factory=Lookups, repr=False)
    users: Lookups[FederatedUser] = field(default_factory=Lookups, repr=False)
    negative_cache: Lookups[None] = field(default_factory=Lookups, repr=False)
    _revisions: "itertools.count[int]" = field(default_factory=itertools.count, repr=False)

    def cached_signing_key(self, access_key_id: str) -> SigningKey | None:
        """See `AccessKeyLookup`."""
        return self.keys.cached(_digest(access_key_id))

    async def signing_key(self, access_key_id: str) -> SigningKey | None:
        """See `AccessKeyLookup`. Raises CredentialUnverified if Keystone gives no usable answer."""

        async def ask() -> Found[KeystoneKey]:
            return Found(await self._key(access_key_id), self.keystone.cache.total_seconds())

        try:
            return await self.keys.get(_digest(access_key_id), ask)
        except Unauthenticated:
            return None

    async def look_up_unknown(self, access_key_id: str) -> None:
        """Ask Keystone about the key as if the key were unknown, but at most once every few seconds."""

        async def ask() -> Found[None]:
            await self.directory.client.credential(_digest(access_key_id).hex())
            raise Unauthenticated(
                "the answer is ignored: the request was sent to hide whether the key is known"
            )

        try:
            await self.negative_cache.get(_digest(access_key_id), ask)
        except Unauthenticated:
            return

    async def caller_of_access_key(self, key: SigningKey, origin: Origin) -> Caller:
        """See `AccessKeyLookup`. Raises CredentialUnverified if Keystone gives no usable answer."""
        if not isinstance(key, KeystoneKey):
            raise TypeError("the key is not from Keystone")

        async def ask() -> Found[FederatedUser]:
            return Found(await self._user(key), self.keystone.cache.total_seconds())

        user = await self.users.get(_digest(key.id, key.user_id, key.project_id), ask)
        return await self.identity.caller_of_federated_user(user, origin)

    async def _key(self, access_key_id: str) -> KeystoneKey:
        """Read an access key's credential. Raises Unauthenticated if the credential can't be used to sign requests."""
        credential_id = _digest(access_key_id).hex()
        body = await self.directory.client.credential(credential_id)
        if body is None:
            raise Unauthenticated("the access key is unknown")
        if body.id != credential_id or body.type != "ec2" or body.project_id is None:
            raise _refused(access_key_id, "it is not an EC2 credential for a project")
        try:
            # Users write the blobs of their own credentials, so don't treat a malformed blob as a failure of Keystone.
            blob = parsed(Ec2Blob, body.blob.encode())
        except UnusableAnswer as error:
            raise _refused(access_key_id, str(error)) from None
        if blob.access != access_key_id:
            raise _refused(access_key_id, "its blob names a different access key")
        if blob.is_delegated:
            raise _refused(
                access_key_id, "it was made under a trust, an application credential or an access token"
            )
        return KeystoneKey(access_key_id, body.user_id, blob.secret.encode(), project_id=body.project_id)

    async def _user(self, key: KeystoneKey) -> FederatedUser:
        """Read the user of a key.

        Raises Unauthenticated if the user, the key's project, or the domain of either is unknown or disabled.
        """
        client = self.directory.client
        user, project = await asyncio.gather(client.user(key.user_id), client.project(key.project_id))
        if user is None or user.id != key.user_id or not user.enabled:
            raise Unauthenticated("the access key's user is unknown or disabled", known=key.id)
        if project is None or project.id != key.project_id or not project.enabled:
            raise Unauthenticated("the access key's project is unknown or disabled", known=key.id)
        # Read domains without the cache of domains. The returned user is cached too, so with two caches, users of a
        # disabled domain would be accepted for up to twice the cache time.
        ids = {user.domain_id, project.domain_id}
        domains = {each.id: each for each in await asyncio.gather(*map(self.directory.current_domain, ids))}
        if not all(each.enabled for each in domains.values()):
            raise Unauthenticated("the domain of the access key's user or project is disabled", known=key.id)
        reference = DomainReference(id=user.domain_id, name=domains[user.domain_id].name)
        mapped = mapped_user(self.keystone, UserReference(id=user.id, name=user.name, domain=reference))
        names, groups = await asyncio.gather(
            client.roles(user.id, project.id), self.directory.groups(user.id, reference)
        )
        return FederatedUser(
            issuer=self.keystone,
            user=mapped,
            groups=groups,
            roles={project.id: project_roles(self.keystone, names)},
            service_roles=frozenset(),
            expires_at=None,
            credential_id=key.id,
            method=ACCESS_KEY_METHOD,
            revision=next(self._revisions),
        )


def _digest(*parts: str) -> bytes:
    """Return the SHA-256 of these strings. The id of an EC2 credential is the SHA-256 of the access key, in hex."""
    return hashlib.sha256("\0".join(parts).encode()).digest()


def _refused(access_key_id: str, reason: str) -> Unauthenticated:
    # `signing_key` returns None for refused and unknown keys alike, so log the reason for operators.
    logger.info("keystone access key refused", access_key_id=access_key_id, reason=reason)
    return Unauthenticated(f"the access key can't be used: {reason}", known=access_key_id)
