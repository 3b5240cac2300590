"""The built-in signer: stores encrypted CA keys in the database, and decrypts them in this process."""

from collections.abc import Callable

from cachetools import LRUCache

from clustercert.issuance.signers.ca_keys import KeySigner, NewKey
from clustercert.model import ClientCA, KeyType
from clustercert.model.errors import SignerError
from clustercert.pki.client_ca import signature_scheme
from clustercert.pki.envelope import SecretSealer
from clustercert.pki.keys import key_der, load_key_der, new_key
from clustercert.pki.signer import LOCAL, KeyCustody, SignerContext

# Signs data, and returns the signature.
_Sign = Callable[[bytes], bytes]


class LocalKeys:
    """CA keys in the database. Caches recently used keys in decrypted form."""

    MAX_OPEN_KEYS = 4096

    def __init__(self, custody: SecretSealer) -> None:
        self._custody = custody
        self._open: LRUCache[str, _Sign] = LRUCache(self.MAX_OPEN_KEYS)

    async def create_key(self, ca_id: str, key_type: KeyType) -> NewKey:
        key = new_key(key_type)
        return NewKey(key.public_key(), sealed_key=await self._custody.seal(key_der(key), _bound_to(ca_id)))

    async def sign(self, ca: ClientCA, data: bytes) -> bytes:
        sign = self._open.get(ca.id)
        if sign is None:
            key = load_key_der(await self._custody.unseal(_sealed_key(ca), _bound_to(ca.id)))
            scheme = signature_scheme(key)
            sign = self._open[ca.id] = lambda data: key.sign(data, *scheme)
        return sign(data)

    async def custody(self, ca: ClientCA) -> KeyCustody:
        _sealed_key(ca)
        return KeyCustody(
            "the service's database, encrypted under a data key; the service decrypts the key to sign"
        )

    async def delete_key(self, ca: ClientCA) -> str:
        self._open.pop(ca.id, None)
        return (
            "The key of the client CA was deleted from the database; backups may still contain it, encrypted."
        )

    async def close(self) -> None:
        self._open.clear()


def local_signer(context: SignerContext) -> KeySigner:
    """Return the built-in signer. Raises ValueError if there are settings."""
    if context.settings:
        raise ValueError(f"the local signer has no setting {min(context.settings)}; remove it")
    return KeySigner(LOCAL, LocalKeys(context.custody))


def _sealed_key(ca: ClientCA) -> bytes:
    if ca.sealed_key is None:
        raise SignerError(
            f"The database has no key for the client CA {ca.id}. Restore a backup, or rotate the CA."
        )
    return ca.sealed_key


def _bound_to(ca_id: str) -> str:
    return f"client_ca:{ca_id}"
