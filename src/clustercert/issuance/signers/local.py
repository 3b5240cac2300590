"""The built-in signer: stores encrypted CA keys in the database, and decrypts them in this process."""

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta

from cachetools import LRUCache

from clustercert.model import ClientCA, KeyType, PrivateKey, SigningRequest, new_id
from clustercert.model.errors import NotFound, SignerError
from clustercert.pki.client_ca import new_client_ca
from clustercert.pki.crl import CrlContent, new_crl
from clustercert.pki.envelope import SecretSealer
from clustercert.pki.keys import key_der, load_key_der, new_key
from clustercert.pki.leaf import LeafBuilder


class LocalSigner:
    """Signs with CA keys from the database. Caches recently used keys in decrypted form."""

    MAX_OPEN_KEYS = 4096
    takes_serial = True

    def __init__(self, settings: Mapping[str, object], custody: SecretSealer) -> None:
        if settings:
            raise ValueError(f"the local signer has no setting {min(settings)}")
        self._custody = custody
        self._builders: LRUCache[str, LeafBuilder] = LRUCache(self.MAX_OPEN_KEYS)

    async def create_ca(
        self, cluster_id: str, key_type: KeyType, not_before: datetime, lifetime: timedelta
    ) -> ClientCA:
        """Create a self-signed CA with a new key."""
        ca_id, key = new_id(), new_key(key_type)
        # Verifiers find the issuer by name, so all CAs of a cluster need different names.
        certificate = new_client_ca(f"clustercert {cluster_id} {ca_id[:8]}", key, not_before, lifetime)
        sealed_key = await self._custody.seal(key_der(key), _bound_to(ca_id))
        return ClientCA(id=ca_id, cluster_id=cluster_id, certificate=certificate, sealed_key=sealed_key)

    async def sign(self, request: SigningRequest) -> tuple[bytes, ...]:
        """Sign a leaf. The returned chain contains only the leaf, because the issuer is the root."""
        builder = self._builders.get(request.ca.id)
        if builder is None:
            ca = request.ca
            if ca.sealed_key is None:
                raise SignerError("The database does not have the key of this client CA.")
            key = await self._open_key(ca.id, ca.sealed_key)
            builder = self._builders[ca.id] = LeafBuilder(ca.certificate, key)
        return (builder.build(request),)

    async def sign_crl(self, ca: ClientCA, content: CrlContent) -> bytes:
        """Sign a CRL in a thread, because signing a long CRL takes seconds."""
        if ca.sealed_key is None:
            raise NotFound("The database does not have the key of this client CA, so there is no CRL for it.")
        key = await self._open_key(ca.id, ca.sealed_key)
        return await asyncio.to_thread(new_crl, ca.certificate, key, content)

    async def _open_key(self, ca_id: str, sealed_key: bytes) -> PrivateKey:
        return load_key_der(await self._custody.unseal(sealed_key, _bound_to(ca_id)))


def _bound_to(ca_id: str) -> str:
    return f"client_ca:{ca_id}"
