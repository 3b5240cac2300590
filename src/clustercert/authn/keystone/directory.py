"""Groups and domains in Keystone."""

import asyncio
import hashlib
from dataclasses import dataclass, field

from clustercert.authn.keystone.answers import DomainBody, DomainReference
from clustercert.authn.keystone.authority import Keystone
from clustercert.authn.keystone.client import KeystoneClient
from clustercert.authn.keystone.lookups import Found, Lookups
from clustercert.authn.keystone.mapping import mapped_groups
from clustercert.model import Group
from clustercert.model.errors import Unauthenticated


@dataclass(frozen=True, slots=True)
class KeystoneDirectory:
    """Reads the groups of users, and domains, which are cached."""

    keystone: Keystone
    client: KeystoneClient
    domains: Lookups[DomainBody] = field(default_factory=Lookups, repr=False)

    async def groups(self, user_id: str, domain: DomainReference) -> tuple[Group, ...]:
        """Return the groups of a user of this domain. Raises Unauthenticated if the user does not exist any more."""
        if not self.keystone.reads_groups:
            return ()
        groups = await self.client.groups(user_id)
        if groups is None:
            raise Unauthenticated("the user is unknown to Keystone", known=user_id)
        others = sorted({group.domain_id for group in groups} - {domain.id})
        found = await asyncio.gather(*map(self.domain, others))
        by_id = {domain.id: domain} | {each.id: DomainReference(id=each.id, name=each.name) for each in found}
        return mapped_groups(self.keystone, user_id, groups, by_id)

    async def domain(self, domain_id: str) -> DomainBody:
        """Return a domain, from the cache if it is there. Raises Unauthenticated if it does not exist."""

        async def ask() -> Found[DomainBody]:
            return Found(await self.current_domain(domain_id), self.keystone.cache_seconds)

        return await self.domains.get(hashlib.sha256(domain_id.encode()).digest(), ask)

    async def current_domain(self, domain_id: str) -> DomainBody:
        """Read a domain from Keystone. Raises Unauthenticated if it does not exist."""
        domain = await self.client.domain(domain_id)
        if domain is None or domain.id != domain_id:
            raise Unauthenticated("a domain is unknown to Keystone")
        return domain
