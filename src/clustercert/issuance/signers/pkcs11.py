"""The signer for keys in a PKCS#11 token, such as a hardware security module."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pydantic import Field, model_validator

from clustercert.issuance.signers.ca_keys import KeySigner, NewKey
from clustercert.issuance.signers.limited import LimitedSigner, SignerLimits
from clustercert.issuance.signers.signer_settings import parsed_settings
from clustercert.issuance.signers.token_sessions import LoggedInSession, TokenAddress, TokenSessions
from clustercert.model import ClientCA, KeyType, PublicKey
from clustercert.model.errors import InvalidRequest, SignerError
from clustercert.pki.client_ca import ca_subject, signature_digest
from clustercert.pki.cryptoki import (
    Attribute,
    CryptokiError,
    CryptokiSession,
    Mechanism,
    ObjectClass,
    Template,
)
from clustercert.pki.cryptoki_codes import CKR
from clustercert.pki.keys import CURVES, RSA_EXPONENT
from clustercert.pki.signer import KeyCustody, SignerContext
from clustercert.policy.setting_types import Section

NAME = "pkcs11"

# CKA_EC_PARAMS: the DER of the curve's OID. RFC 5480 section 2.1.1.1.
_CURVE_OIDS: Mapping[KeyType, bytes] = {
    "ec-p256": bytes.fromhex("06082a8648ce3d030107"),
    "ec-p384": bytes.fromhex("06052b81040022"),
}
# The DER of a DigestInfo before the SHA-256 digest. RFC 8017 section 9.2, note 1.
_SHA256_DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")

_TRUE, _FALSE = b"\1", b"\0"
# The values that a CA's key must have, so that the key was made in the token and was never readable outside.
_PROTECTION = {
    Attribute.SENSITIVE: _TRUE,
    Attribute.ALWAYS_SENSITIVE: _TRUE,
    Attribute.EXTRACTABLE: _FALSE,
    Attribute.NEVER_EXTRACTABLE: _TRUE,
    Attribute.LOCAL: _TRUE,
}


class Pkcs11Settings(Section):
    """`[signers.pkcs11]`: client CAs with keys in a PKCS#11 token, such as a hardware security module.

    See [Hardware security modules](pkcs11.md).

    Attributes:
        module: absolute path of the token's PKCS#11 module, a shared library.
        token: label of the token.
        serial: serial number of the token, instead of the label or if several tokens have the same label.
        pin_file: file with the PIN of the token's user, with mode 0600.
        threads: number of threads and sessions, per worker. Each thread makes one signature at a time.
        queue: number of requests that may wait for a thread, per worker. Further requests get status 503.
        timeout: longest time in seconds for waiting and signing together. After this time, the request gets status 503.
    """

    module: Path
    token: str | None = Field(default=None, min_length=1, max_length=32)
    serial: str | None = Field(default=None, min_length=1, max_length=16)
    pin_file: Path
    threads: int = Field(default=4, ge=1, le=64)
    queue: int = Field(default=256, ge=1, le=100_000)
    timeout: float = Field(default=10, gt=0, le=60)

    @model_validator(mode="after")
    def _check_token(self) -> "Pkcs11Settings":
        if not self.module.is_absolute():
            raise ValueError("set module to an absolute path")
        if self.token is None and self.serial is None:
            raise ValueError("set token to the token's label, or serial to its serial number")
        return self


def pkcs11_signer(context: SignerContext) -> LimitedSigner:
    """Build the signer. The module is loaded at the first use. Raises ValueError for invalid settings."""
    settings = parsed_settings(Pkcs11Settings, context.settings)
    address = TokenAddress(settings.module, settings.token, settings.serial, settings.pin_file)
    keys = TokenKeys(TokenSessions(address, settings.threads))
    limits = SignerLimits(concurrency=settings.threads, queue=settings.queue, timeout=settings.timeout)
    return LimitedSigner(NAME, KeySigner(NAME, keys), limits)


class TokenKeys:
    """CA keys in a PKCS#11 token. A key's CKA_ID is the id of its CA."""

    def __init__(self, sessions: TokenSessions) -> None:
        self._sessions = sessions

    async def create_key(self, ca_id: str, key_type: KeyType) -> NewKey:
        """Generate a key pair in the token."""
        if key_type == "ed25519":
            raise InvalidRequest(
                "The signer pkcs11 has no ed25519 keys. Use ec-p256, ec-p384, rsa-2048, rsa-3072 or rsa-4096."
            )

        def create(connection: LoggedInSession) -> NewKey:
            # A first attempt that failed may have left a key.
            _destroy_keys(connection.session, ca_id)
            public_key = _generate(connection, ca_id, key_type)
            return NewKey(public_key, reference=_reference(connection, ca_id))

        return await self._sessions.run(create)

    async def sign(self, ca: ClientCA, data: bytes) -> bytes:
        """Sign data with the CA's key in the token."""
        key = ca_subject(ca.certificate).key
        digest = signature_digest(key)
        if digest is None:
            raise SignerError("This client CA has an ed25519 key, and the signer pkcs11 has no such keys.")
        digest_name = digest.name

        def sign(connection: LoggedInSession) -> bytes:
            handle = _protected_key(connection, ca.id)
            hashed = hashlib.new(digest_name, data).digest()
            if isinstance(key, rsa.RSAPublicKey):
                return connection.session.sign(handle, Mechanism.RSA_PKCS, _SHA256_DIGEST_INFO + hashed)
            # PKCS#11 returns r and s with the same length, one after the other.
            signature = connection.session.sign(handle, Mechanism.ECDSA, hashed)
            half = len(signature) // 2
            return encode_dss_signature(int.from_bytes(signature[:half]), int.from_bytes(signature[half:]))

        return await self._sessions.run(sign)

    async def custody(self, ca: ClientCA) -> KeyCustody:
        """Read the key's properties from the token."""

        def read(connection: LoggedInSession) -> KeyCustody:
            handle = _private_key(connection.session, ca.id)
            proof = {
                f"CKA_{attribute.name}": _text(_value(connection.session, handle, attribute))
                for attribute in _PROTECTION
            }
            token = connection.token
            return KeyCustody(
                f"PKCS#11 token {token.label} (serial number {token.serial}), key id {ca.id}", proof
            )

        return await self._sessions.run(read)

    async def delete_key(self, ca: ClientCA) -> str:
        """Delete the CA's private and public key from the token."""

        def delete(connection: LoggedInSession) -> str:
            connection.handles.pop(ca.id, None)
            deleted = _destroy_keys(connection.session, ca.id)
            state = "is deleted from" if deleted else "does not exist in"
            return f"The key {ca.id} {state} the PKCS#11 token {connection.token.label}."

        return await self._sessions.run(delete)

    async def close(self) -> None:
        """Close the sessions and the module."""
        await self._sessions.close()


def _generate(connection: LoggedInSession, ca_id: str, key_type: KeyType) -> PublicKey:
    """Generate a key pair. Returns the public key. Raises SignerError if the token would export the private key."""
    session = connection.session
    common: Template = {
        Attribute.TOKEN: True,
        Attribute.ID: bytes.fromhex(ca_id),
        Attribute.LABEL: f"clustercert client CA {ca_id[:8]}".encode(),
    }
    private: Template = {
        **common,
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        Attribute.SIGN: True,
    }
    public: Template = {**common, Attribute.VERIFY: True}
    if key_type in CURVES:
        public_handle, private_handle = session.generate_key_pair(
            Mechanism.EC_KEY_PAIR_GEN,
            {**public, Attribute.EC_PARAMS: _CURVE_OIDS[key_type]},
            {**private, Attribute.DERIVE: False},
        )
    else:
        public_handle, private_handle = session.generate_key_pair(
            Mechanism.RSA_PKCS_KEY_PAIR_GEN,
            {
                **public,
                Attribute.MODULUS_BITS: int(key_type.removeprefix("rsa-")),
                Attribute.PUBLIC_EXPONENT: RSA_EXPONENT.to_bytes(3),
            },
            {**private, Attribute.DECRYPT: False, Attribute.UNWRAP: False},
        )
    try:
        _check_protection(session, private_handle, ca_id)
        return _public_key(session, public_handle, key_type)
    except SignerError:
        session.destroy(private_handle)
        session.destroy(public_handle)
        raise


def _public_key(session: CryptokiSession, handle: int, key_type: KeyType) -> PublicKey:
    if key_type not in CURVES:
        exponent = int.from_bytes(session.read(handle, Attribute.PUBLIC_EXPONENT))
        return rsa.RSAPublicNumbers(
            exponent, int.from_bytes(session.read(handle, Attribute.MODULUS))
        ).public_key()
    curve = CURVES[key_type].curve
    point = session.read(handle, Attribute.EC_POINT)
    # The point is in an OCTET STRING. Some tokens omit the OCTET STRING's header of two bytes.
    length = 1 + 2 * ((curve.key_size + 7) // 8)
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(curve, point[-length:])
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignerError("The PKCS#11 token returned an invalid public key.") from error


def _protected_key(connection: LoggedInSession, ca_id: str) -> int:
    """Return the handle of a CA's private key. The key's protection is checked once in each session."""
    handle = connection.handles.get(ca_id)
    if handle is None:
        handle = _private_key(connection.session, ca_id)
        _check_protection(connection.session, handle, ca_id)
        connection.handles[ca_id] = handle
    return handle


def _private_key(session: CryptokiSession, ca_id: str) -> int:
    handles = session.find(ObjectClass.PRIVATE_KEY, bytes.fromhex(ca_id))
    if len(handles) != 1:
        raise SignerError(
            f"The PKCS#11 token has {len(handles) or 'no'} private keys with the id {ca_id}, instead of one."
        )
    return handles[0]


def _check_protection(session: CryptokiSession, handle: int, ca_id: str) -> None:
    for attribute, required in _PROTECTION.items():
        value = _value(session, handle, attribute)
        if value != required:
            raise SignerError(
                f"The key {ca_id} in the PKCS#11 token is not protected: CKA_{attribute.name} is {_text(value)}, "
                f"but must be {_text(required)}. The key is not used."
            )


def _value(session: CryptokiSession, handle: int, attribute: Attribute) -> bytes | None:
    """Read an attribute of a key. Returns None if the token does not reveal the value."""
    try:
        return session.read(handle, attribute)
    except CryptokiError as error:
        if error.value in (CKR.ATTRIBUTE_TYPE_INVALID, CKR.ATTRIBUTE_SENSITIVE):
            return None
        raise


def _text(value: bytes | None) -> str:
    return {_TRUE: "true", _FALSE: "false"}.get(value or b"", "unknown")


def _reference(connection: LoggedInSession, ca_id: str) -> str:
    """Return the PKCS#11 URI of a CA's private key. RFC 7512."""
    token = connection.token
    key_id = "".join(f"%{octet:02x}" for octet in bytes.fromhex(ca_id))
    return f"pkcs11:token={quote(token.label, safe='')};serial={quote(token.serial, safe='')};id={key_id};type=private"


def _destroy_keys(session: CryptokiSession, ca_id: str) -> int:
    """Delete a CA's key pair. Returns the number of deleted objects."""
    handles = [
        handle
        for each in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY)
        for handle in session.find(each, bytes.fromhex(ca_id))
    ]
    for handle in handles:
        session.destroy(handle)
    return len(handles)
