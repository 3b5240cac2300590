"""Access keys of several identity systems. The form of an access key tells which system decides about it."""

from dataclasses import dataclass

from clustercert.authn.access_keys import AccessKeyLookup, SigningKey
from clustercert.authn.credential_forms import is_built_in_access_key
from clustercert.model import Caller, Origin


@dataclass(frozen=True, slots=True)
class AccessKeysByForm:
    """Looks up a key in the system that its form belongs to. See `AccessKeyLookup`."""

    built_in: AccessKeyLookup
    keystone: AccessKeyLookup

    def cached_signing_key(self, access_key_id: str) -> SigningKey | None:
        return self._system(access_key_id).cached_signing_key(access_key_id)

    async def signing_key(self, access_key_id: str) -> SigningKey | None:
        return await self._system(access_key_id).signing_key(access_key_id)

    async def load_in_vain(self, access_key_id: str) -> None:
        await self._system(access_key_id).load_in_vain(access_key_id)

    async def caller_of_access_key(self, key: SigningKey, origin: Origin) -> Caller:
        return await self._system(key.id).caller_of_access_key(key, origin)

    def _system(self, access_key_id: str) -> AccessKeyLookup:
        return self.built_in if is_built_in_access_key(access_key_id) else self.keystone
