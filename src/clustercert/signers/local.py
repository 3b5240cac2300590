"""Signs with a client-CA key that the store keeps sealed and this process opens."""

from cachetools import LRUCache

from clustercert.certificate import LeafBuilder
from clustercert.errors import SignerError
from clustercert.keypair import load_key_der
from clustercert.model import ClientCA, SigningRequest
from clustercert.sealing import Unsealer


class LocalSigner:
    """Keeps the opened keys of the CAs it used last, so that a million clusters don't fill a worker."""

    MAX_OPEN_KEYS = 4096
    takes_serial = True

    def __init__(self, custody: Unsealer) -> None:
        self._custody = custody
        self._builders: LRUCache[str, LeafBuilder] = LRUCache(self.MAX_OPEN_KEYS)

    async def sign(self, request: SigningRequest) -> tuple[bytes, ...]:
        """The leaf alone, in DER: its issuer is the root. Raises SignerError where the CA's key isn't here."""
        builder = self._builders.get(request.ca.id)
        if builder is None:
            builder = self._builders[request.ca.id] = await self._open(request.ca)
        return (builder.build(request),)

    async def _open(self, ca: ClientCA) -> LeafBuilder:
        if ca.sealed_key is None:
            raise SignerError("The key of this client CA is not kept here.")
        return LeafBuilder(
            ca.certificate, load_key_der(await self._custody.unseal(ca.sealed_key, f"client_ca:{ca.id}"))
        )
