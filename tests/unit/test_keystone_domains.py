"""Domains in Keystone that are disabled while their names are cached."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from clustercert.authn.federated import FederatedUser
from clustercert.authn.keystone.service import KeystoneService, new_keystone
from clustercert.authn.keystone.settings import Keystone
from clustercert.model import Caller, Origin
from clustercert.model.errors import Unauthenticated
from support.keystone_double import DOMAIN, KeystoneDouble

ORIGIN = Origin(address="192.0.2.1", request_id="0" * 32)
PROJECT = "1" * 32


@dataclass
class Accepted:
    """Accepts every user."""

    users: list[str] = field(default_factory=list)

    async def caller_of_federated_user(self, user: FederatedUser, origin: Origin) -> Caller:
        self.users.append(user.user.id)
        return Caller(user.user, {}, user.method, origin, service_roles=(), expires_at=None, credential_id="")


async def accept(service: KeystoneService, access_key: str) -> None:
    assert service.access_keys is not None
    key = await service.access_keys.signing_key(access_key)
    assert key is not None
    await service.access_keys.caller_of_access_key(key, ORIGIN)


async def test_a_disabled_domain_counts_for_each_key_from_then_on() -> None:
    """Otherwise, a key could be used for the time of the cache twice: as long as its domain, and then its user."""
    with KeystoneDouble().running() as double:
        double.add_project(PROJECT)
        one, other = (double.add_credential(double.add_user(name), PROJECT)[0] for name in ("alice", "bob"))
        configured = Keystone.model_validate(double.settings(domain="tests"))
        accepted = Accepted()
        service = new_keystone(configured, accepted, lambda: datetime.now(UTC))
        try:
            await accept(service, one)
            double.domains[DOMAIN["id"]]["enabled"] = False
            with pytest.raises(Unauthenticated) as refused:
                await accept(service, other)
        finally:
            await service.close()
    assert "domain" in str(refused.value.reason)
    assert len(accepted.users) == 1
