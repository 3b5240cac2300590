"""The components that authenticate users of one Keystone, built from the settings."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from clustercert.authn.federated import FederatedLookup
from clustercert.authn.keystone.access_keys import KeystoneAccessKeys
from clustercert.authn.keystone.client import KeystoneClient, KeystoneDirectory, Lookups
from clustercert.authn.keystone.connection import KeystoneConnection, ServiceToken
from clustercert.authn.keystone.logins import KeystoneLogins
from clustercert.authn.keystone.settings import Keystone
from clustercert.authn.keystone.tokens import KeystoneTokens


@dataclass(frozen=True, slots=True)
class KeystoneService:
    """The components that authenticate Keystone users. All components share connections and the service's token.

    Attributes:
        access_keys: None if the settings don't accept EC2 credentials.
        logins: logins of people with their passwords.
    """

    keystone: Keystone
    tokens: KeystoneTokens
    access_keys: KeystoneAccessKeys | None
    logins: KeystoneLogins
    service_token: ServiceToken
    connection: KeystoneConnection

    async def watch(self, stop: asyncio.Event) -> None:
        """Keep the service's own token valid until `stop` is set."""
        await self.service_token.watch(stop)

    async def close(self) -> None:
        """Close all connections."""
        await self.connection.close()


def new_keystone(
    keystone: Keystone,
    identity: FederatedLookup,
    now: Callable[[], datetime],
    clock: Callable[[], float] = time.monotonic,
) -> KeystoneService:
    """Create the components. The first request to Keystone is sent by `watch` or by the first lookup."""
    connection = KeystoneConnection(keystone, clock)
    service_token = ServiceToken(connection, keystone.service, keystone.name, clock)
    client = KeystoneClient(connection, service_token, keystone.name)
    directory = KeystoneDirectory(keystone, client, Lookups(clock))
    tokens = KeystoneTokens(keystone, directory, identity, now, Lookups(clock))
    access_keys = KeystoneAccessKeys(
        keystone, directory, identity, Lookups(clock), Lookups(clock), Lookups(clock)
    )
    logins = KeystoneLogins(keystone, connection, tokens)
    return KeystoneService(
        keystone, tokens, access_keys if keystone.access_keys else None, logins, service_token, connection
    )
