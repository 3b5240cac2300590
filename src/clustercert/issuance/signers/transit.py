"""The signer for keys in the transit secrets engine of OpenBao or HashiCorp Vault.

Source: OpenBao's API documentation, "Transit secrets engine".
"""

import base64
import binascii
import hashlib
import time
from collections.abc import Mapping

from cachetools import LRUCache
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import Field

from clustercert.issuance.signers.ca_keys import KeySigner, NewKey
from clustercert.issuance.signers.limited import LimitedSigner, SignerLimits
from clustercert.issuance.signers.signer_settings import parsed_settings
from clustercert.model import ClientCA, JsonObject, KeyType, PublicKey
from clustercert.model.errors import InvalidRequest, SignerError, Unavailable
from clustercert.pki.client_ca import ca_subject, signature_digest
from clustercert.pki.keys import spki_der
from clustercert.pki.openbao import OpenBao, OpenBaoRefused, ServerUnavailable
from clustercert.pki.openbao_settings import OpenBaoSettings
from clustercert.pki.signer import KeyCustody, SignerContext

NAME = "transit"
RETRY_SECONDS = 5
# A key is created with this version. Other versions, from a rotation inside OpenBao, do not belong to the CA.
KEY_VERSION = 1
# The properties of a key are read again after this time, because an administrator can make a key exportable.
CHECK_SECONDS = 60.0
_MAX_CHECKED = 4096
_KEY_TYPES: Mapping[KeyType, str] = {
    "ec-p256": "ecdsa-p256",
    "ec-p384": "ecdsa-p384",
    "rsa-2048": "rsa-2048",
    "rsa-3072": "rsa-3072",
    "rsa-4096": "rsa-4096",
}
_HASHES = {"sha256": "sha2-256", "sha384": "sha2-384"}
# The values that a CA's key must have, so that OpenBao made the key and the key was never readable outside.
_PROTECTION = ("exportable", "allow_plaintext_backup", "imported_key")
_SHOWN = (*_PROTECTION, "type", "latest_version", "deletion_allowed")


class TransitSettings(SignerLimits, OpenBaoSettings):
    """`[signers.transit]`: client CAs with keys in OpenBao or HashiCorp Vault.

    See [OpenBao or Vault](openbao.md).

    Attributes:
        mount: path of the transit secrets engine. Use an engine for these keys alone.
        concurrency: number of simultaneous requests to OpenBao, per worker.
        queue: number of requests that may wait for OpenBao, per worker. Further requests get status 503.
        timeout: longest time in seconds for waiting and signing together. After this time, the request gets status 503.
    """

    mount: str = Field(default="clustercert-ca", max_length=64, pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$")
    timeout: float = Field(default=10, gt=0, le=60)


def transit_signer(context: SignerContext) -> LimitedSigner:
    """Build the signer. Connects at the first use. Raises ValueError for invalid settings."""
    settings = parsed_settings(TransitSettings, context.settings)
    keys = TransitKeys(OpenBao(settings, settings.timeout), settings.mount)
    return LimitedSigner(NAME, KeySigner(NAME, keys), settings)


class TransitKeys:
    """CA keys in OpenBao. A CA's key has the name `clustercert-` and the id of the CA."""

    def __init__(self, server: OpenBao, mount: str) -> None:
        self._server = server
        self._mount = mount
        # The time of the last check of each CA's key, by the CA's id.
        self._checked: LRUCache[str, float] = LRUCache(_MAX_CHECKED)

    async def create_key(self, ca_id: str, key_type: KeyType) -> NewKey:
        """Create a key in OpenBao. Raises SignerError if OpenBao would export the key."""
        if key_type not in _KEY_TYPES:
            raise InvalidRequest(
                f"The signer transit has no {key_type} keys. Use {', '.join(list(_KEY_TYPES)[:-1])} or rsa-4096."
            )
        await self._call("POST", f"keys/{_name(ca_id)}", {"type": _KEY_TYPES[key_type]})
        facts = await self._facts(ca_id)
        _check_protection(ca_id, facts)
        if facts.get("type") != _KEY_TYPES[key_type]:
            raise SignerError(
                f"OpenBao created the key {_name(ca_id)} with the type {facts.get('type')} instead of"
                f" {_KEY_TYPES[key_type]}."
            )
        return NewKey(_public_key(facts), reference=f"{self._mount}/keys/{_name(ca_id)}")

    async def sign(self, ca: ClientCA, data: bytes) -> bytes:
        """Sign data with the CA's key in OpenBao."""
        key = ca_subject(ca.certificate).key
        digest = signature_digest(key)
        if digest is None:
            raise SignerError("This client CA has an ed25519 key, and the signer transit has no such keys.")
        await self._check(ca, key)
        body: JsonObject = {
            "input": base64.b64encode(hashlib.new(digest.name, data).digest()).decode(),
            "prehashed": True,
            "hash_algorithm": _HASHES[digest.name],
            "key_version": KEY_VERSION,
            "marshaling_algorithm": "asn1",
        }
        if isinstance(key, rsa.RSAPublicKey):
            body["signature_algorithm"] = "pkcs1v15"
        answer = await self._call("POST", f"sign/{_name(ca.id)}", body)
        _, _, signature = str(answer.get("signature", "")).partition(f":v{KEY_VERSION}:")
        try:
            return base64.b64decode(signature, validate=True)
        except binascii.Error:
            raise SignerError("OpenBao returned no usable signature.") from None

    async def custody(self, ca: ClientCA) -> KeyCustody:
        """Read the key's properties from OpenBao."""
        facts = await self._facts(ca.id)
        return KeyCustody(
            f"OpenBao at {self._server.url}, transit engine {self._mount}, key {_name(ca.id)}, version {KEY_VERSION}",
            {name: _text(facts.get(name)) for name in _SHOWN},
            access_policy(self._mount),
        )

    async def delete_key(self, ca: ClientCA) -> str:
        """Delete the CA's key with all its versions."""
        name = _name(ca.id)
        self._checked.pop(ca.id, None)
        if await self._find(ca.id) is None:
            return f"The key {name} does not exist in the transit engine {self._mount} of OpenBao."
        await self._call("POST", f"keys/{name}/config", {"deletion_allowed": True})
        await self._call("DELETE", f"keys/{name}")
        return f"The key {name} is deleted from the transit engine {self._mount} of OpenBao."

    async def close(self) -> None:
        """Close the connections to OpenBao."""
        await self._server.close()

    async def _check(self, ca: ClientCA, key: PublicKey) -> None:
        """Check, once in a while, that the CA's key is protected and belongs to the CA. Raises SignerError."""
        if time.monotonic() - self._checked.get(ca.id, float("-inf")) < CHECK_SECONDS:
            return
        facts = await self._facts(ca.id)
        _check_protection(ca.id, facts)
        if spki_der(_public_key(facts)) != spki_der(key):
            raise SignerError(f"The key {_name(ca.id)} in OpenBao is not the key of the client CA.")
        self._checked[ca.id] = time.monotonic()

    async def _facts(self, ca_id: str) -> JsonObject:
        facts = await self._find(ca_id)
        if facts is None:
            raise SignerError(
                f"The transit engine {self._mount} of OpenBao has no key {_name(ca_id)}. Restore OpenBao from a "
                "backup, or give the cluster a new client CA."
            )
        return facts

    async def _find(self, ca_id: str) -> JsonObject | None:
        """Read the properties of a CA's key. Returns None if there is no such key."""
        try:
            return await self._server.transit("GET", f"keys/{_name(ca_id)}")
        except OpenBaoRefused as refused:
            if refused.status == 404:  # noqa: PLR2004
                return None
            raise SignerError(f"OpenBao refused to show the key {_name(ca_id)}: {refused}") from refused
        except ServerUnavailable as failure:
            raise _unavailable() from failure

    async def _call(self, method: str, path: str, body: JsonObject | None = None) -> JsonObject:
        try:
            return await self._server.transit(method, path, body)
        except OpenBaoRefused as refused:
            raise SignerError(f"OpenBao refused the request {method} {path}: {refused}") from refused
        except ServerUnavailable as failure:
            raise _unavailable() from failure


def access_policy(mount: str) -> str:
    """Return the policy that the signer's token needs, in HCL.

    The names of keys are not known in advance, and a glob such as `keys/clustercert-*` would include `…/rotate`. So the
    policy allows one path segment of any name, in an engine for these keys alone.
    """
    types = ", ".join(f'"{key_type}"' for key_type in _KEY_TYPES.values())
    return f"""\
# Create, read and delete keys. A key that can be exported can't be created.
path "{mount}/keys/+" {{
  capabilities = ["create", "read", "update", "delete"]
  allowed_parameters = {{ "type" = [{types}] }}
}}
# Allow the deletion of a key, and change nothing else.
path "{mount}/keys/+/config" {{
  capabilities = ["update"]
  allowed_parameters = {{ "deletion_allowed" = [true] }}
}}
path "{mount}/sign/+" {{ capabilities = ["update"] }}
# Renew the token.
path "auth/token/renew-self" {{ capabilities = ["update"] }}
path "auth/token/lookup-self" {{ capabilities = ["read"] }}
"""


def _name(ca_id: str) -> str:
    return f"clustercert-{ca_id}"


def _unavailable() -> Unavailable:
    return Unavailable(
        "The signer transit can't use OpenBao now. Try again in a few seconds.", retry_after=RETRY_SECONDS
    )


def _check_protection(ca_id: str, facts: JsonObject) -> None:
    for name in _PROTECTION:
        if facts.get(name) is not False:
            raise SignerError(
                f"The key {_name(ca_id)} in OpenBao is not protected: {name} is {_text(facts.get(name))}, but must be "
                "false. The key is not used."
            )


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else "unknown" if value is None else str(value)


def _public_key(facts: JsonObject) -> PublicKey:
    """Return the public key of the version that signs. Raises SignerError."""
    versions = facts.get("keys")
    version = versions.get(str(KEY_VERSION)) if isinstance(versions, dict) else None
    pem = version.get("public_key") if isinstance(version, dict) else None
    try:
        key = load_pem_public_key(str(pem).encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignerError("OpenBao returned no usable public key.") from error
    if not isinstance(key, PublicKey):
        raise SignerError("OpenBao returned a public key of an unknown type.")
    return key
