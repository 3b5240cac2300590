"""The log's key pair. Its private key is sealed, so write access to the database is not enough to replace the key."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from clustercert.model.errors import UnsealError
from clustercert.pki.envelope import SecretSealer
from clustercert.store.audit import LOG

# The private key's encryption context.
KEY_CONTEXT = f"audit_log:{LOG}"


async def unseal_private_key(sealed_key: bytes, custody: SecretSealer) -> Ed25519PrivateKey:
    """Decrypt the log's private key. Raises UnsealError or Unavailable."""
    raw = await custody.unseal(sealed_key, KEY_CONTEXT)
    try:
        return Ed25519PrivateKey.from_private_bytes(raw)
    except ValueError as error:
        raise UnsealError("the audit log's private key is not an Ed25519 key") from error
