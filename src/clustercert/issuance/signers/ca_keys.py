"""A signer that works with any store of CA keys, if the store can sign bytes."""

import asyncio
import functools
from dataclasses import dataclass, replace
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from clustercert.model import ClientCA, KeyType, PrivateKey, PublicKey, SigningRequest, new_id
from clustercert.model.choices import LeafProfile
from clustercert.model.clusters import Registration
from clustercert.model.errors import InvalidRequest, NotFound, SignerError
from clustercert.pki.client_ca import ca_subject, client_ca_builder, signature_digest
from clustercert.pki.crl import CrlContent, new_crl
from clustercert.pki.keys import key_type_of, new_key
from clustercert.pki.leaf import encode_signed, new_serial, requested_tbs
from clustercert.pki.signer import CaRequest, KeyCustody, SignerAccess


@dataclass(frozen=True, slots=True)
class NewKey:
    """A new CA key. `sealed_key` and `reference` become the fields of the `ClientCA`."""

    public_key: PublicKey
    sealed_key: bytes | None = None
    reference: str | None = None


class CaKeys(Protocol):
    """A store of CA keys, which also signs. Raises only SignerError, RemoteFailed or Unavailable."""

    async def create_key(self, ca_id: str, key_type: KeyType) -> NewKey:
        """Create a key for a client CA. Raises InvalidRequest if the store has no keys of this type."""

    async def sign(self, ca: ClientCA, data: bytes) -> bytes:
        """Sign data with a CA's key and the algorithm in `client_ca.signature_scheme`.

        Returns the signature as in a certificate; for ECDSA the DER of ECDSA-Sig-Value (RFC 3279 section 2.2.3).
        """

    async def custody(self, ca: ClientCA) -> KeyCustody:
        """Return where a CA's key is."""

    async def delete_key(self, ca: ClientCA) -> str:
        """Delete a CA's key, if it still exists. Returns a sentence that says what happened to the key."""

    async def close(self) -> None:
        """Release connections and threads."""


class KeySigner:
    """Builds self-signed client CAs, leaves and CRLs, and has `keys` sign them."""

    takes_serial = True
    profile: LeafProfile = "own"
    is_ca_of_cluster = False

    def __init__(self, name: str, keys: CaKeys) -> None:
        self._name = name
        self._keys = keys

    async def create_ca(self, request: CaRequest) -> ClientCA:
        """Create a self-signed CA with a new key."""
        if request.secret is not None:
            raise InvalidRequest(
                f"signer_token: the signer {self._name} takes no token. Send no signer_token."
            )
        ca_id = new_id()
        key = await self._keys.create_key(ca_id, request.key_type)
        # Verifiers find the issuer by name, so all CAs of a cluster need different names.
        name = f"clustercert {request.cluster_id} {ca_id[:8]}"
        builder = client_ca_builder(name, key.public_key, request.not_before, request.lifetime)
        placeholder = await _placeholder_key(key.public_key)
        unsigned = builder.sign(placeholder, signature_digest(placeholder))
        ca = ClientCA(
            id=ca_id,
            cluster_id=request.cluster_id,
            certificate=unsigned,
            sealed_key=key.sealed_key,
            signer=self._name,
            key_reference=key.reference,
        )
        signature = await self._keys.sign(ca, unsigned.tbs_certificate_bytes)
        der = encode_signed(unsigned.tbs_certificate_bytes, ca_subject(unsigned).algorithm_der, signature)
        certificate = x509.load_der_x509_certificate(der)
        try:
            certificate.verify_directly_issued_by(certificate)
        except (InvalidSignature, TypeError, ValueError) as error:
            raise SignerError(
                "The signature of the new client CA is wrong. Check the signer's key store."
            ) from error
        return replace(ca, certificate=certificate)

    async def sign(self, request: SigningRequest) -> tuple[bytes, ...]:
        """Sign a leaf. The returned chain contains only the leaf, because the issuer is the root."""
        issuer = ca_subject(request.ca.certificate)
        serial = request.serial if request.serial is not None else new_serial()
        tbs = requested_tbs(request, issuer, serial)
        signature = await self._keys.sign(request.ca, tbs)
        return (encode_signed(tbs, issuer.algorithm_der, signature),)

    async def sign_crl(self, ca: ClientCA, content: CrlContent) -> bytes:
        """Sign a CRL. A thread encodes the CRL, because encoding a long CRL takes seconds."""
        if ca.sealed_key is None and ca.key_reference is None:
            raise NotFound("The key of this client CA was deleted, so this CA has no CRL.")
        issuer = ca_subject(ca.certificate)
        placeholder = await _placeholder_key(issuer.key)
        tbs = await asyncio.to_thread(_crl_tbs, ca.ca_certificate, placeholder, content)
        return encode_signed(tbs, issuer.algorithm_der, await self._keys.sign(ca, tbs))

    async def custody(self, ca: ClientCA) -> KeyCustody:
        """Return where the CA's key is."""
        return await self._keys.custody(ca)

    async def accept_secret(self, ca: ClientCA, _registration: Registration, _secret: bytes) -> bytes:
        """Raise InvalidRequest: this signer takes no credential for a single cluster."""
        raise InvalidRequest(f"signer_token: the signer {ca.signer} takes no token. Send no signer_token.")

    async def maintain(self, _ca: ClientCA) -> SignerAccess | None:
        """Do nothing: this signer has no credential for a single CA."""
        return None

    async def delete_key(self, ca: ClientCA) -> str:
        """Delete the CA's key, if it still exists."""
        return await self._keys.delete_key(ca)

    async def close(self) -> None:
        """Release connections and threads."""
        await self._keys.close()


def _crl_tbs(ca: x509.Certificate, placeholder: PrivateKey, content: CrlContent) -> bytes:
    return x509.load_der_x509_crl(new_crl(ca, placeholder, content)).tbs_certlist_bytes


async def _placeholder_key(key: PublicKey) -> PrivateKey:
    """Return a key with the signature algorithm of `key`.

    The library encodes certificates and CRLs only if it also signs them. So a placeholder key signs, and its signature
    is replaced. The signed content depends only on the algorithm of the key.
    """
    key_type = key_type_of(key)
    # All RSA keys have the same algorithm, and a thread creates the placeholder, because creating an RSA key takes
    # long.
    return await asyncio.to_thread(_new_placeholder, "rsa-2048" if key_type.startswith("rsa-") else key_type)


@functools.cache
def _new_placeholder(key_type: KeyType) -> PrivateKey:
    return new_key(key_type)
