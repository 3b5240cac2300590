"""Envelope encryption of secrets at rest, with AES-256-GCM.

* A key-encryption key (KEK) encrypts data keys: it wraps them. KEKs are never stored in the database.
* A data key encrypts secrets: it seals them. Data keys are stored wrapped. The active data key encrypts new secrets;
  the other data keys only decrypt.

Data key, wrapped by a `Kek`: version (1) | nonce (12) | ciphertext and tag
Sealed secret: version (1) | data key id (4) | nonce (12) | ciphertext and tag

Each secret is bound to its database row (`table:id`): a secret that was copied to another row can't be decrypted.
`custody` loads and rotates the keys.
"""

import base64
import hashlib
import hmac
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from clustercert.model.errors import UnsealError

KEY_BYTES = 32
_NONCE_BYTES = 12
_VERSION = b"\x01"
_HEAD = struct.Struct(">cI")
# The purpose of the derived key, so that it differs from keys for other purposes.
_NAME_HASH = b"clustercert hash of a name in a failed login"
_HASH_BYTES = 8


class SecretSealer(Protocol):
    """Encrypts and decrypts secrets. `bound_to` names a secret's row as `table:id`. Implemented by `custody`."""

    async def seal(self, plaintext: bytes, bound_to: str) -> bytes: ...

    async def unseal(self, sealed: bytes, bound_to: str) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Kek:
    """A key-encryption key of 32 bytes. The id (16 lower-case hex digits from a hash of the key) is not secret."""

    key: bytes = field(repr=False)
    id: str = field(init=False)

    def __post_init__(self) -> None:
        if len(self.key) != KEY_BYTES:
            raise ValueError(f"a key-encryption key has {KEY_BYTES} bytes")
        digest = hashlib.sha256(b"clustercert key-encryption key id\0" + self.key)
        object.__setattr__(self, "id", digest.hexdigest()[:16])

    async def wrap(self, data_key: "DataKey") -> bytes:
        return _VERSION + _seal(self.key, data_key.key, data_key.context)

    async def unwrap(self, data_key_id: int, wrapped: bytes) -> "DataKey":
        if not wrapped.startswith(_VERSION):
            raise UnsealError(
                f"data key {data_key_id} has an unknown format; a newer version may have written it"
            )
        context, name = wrapping_context(data_key_id), f"data key {data_key_id}"
        return DataKey(data_key_id, _open(self.key, wrapped[len(_VERSION) :], context, name))


@dataclass(frozen=True, slots=True)
class DataKey:
    """A key of 32 bytes that encrypts secrets. The id (a positive number of at most 32 bits) is never reused."""

    id: int
    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.key) != KEY_BYTES:
            raise UnsealError(f"data key {self.id} has the wrong length")

    @property
    def context(self) -> bytes:
        """The additional authenticated data of this key's wrapped forms."""
        return wrapping_context(self.id)


class WrappingKey(Protocol):
    """A key-encryption key: a `Kek`, or a key that never leaves a key management service.

    Attributes:
        id: identifies the key in the database. Not secret.
    """

    @property
    def id(self) -> str: ...

    async def wrap(self, data_key: DataKey) -> bytes:
        """Encrypt a data key, for storage in the database. Raises KeysUnavailable or CustodyError."""

    async def unwrap(self, data_key_id: int, wrapped: bytes) -> DataKey:
        """Decrypt a wrapped data key. Raises KeysUnavailable.

        Raises UnsealError if another key wrapped the data key, or if the wrapped data key was altered.
        """


class KeyRing:
    """All data keys of a database, decrypted. Immutable.

    Attributes:
        active_id: the id of the data key that seals new secrets.
    """

    def __init__(self, data_keys: Iterable[DataKey], active_id: int) -> None:
        self.data_keys = tuple(data_keys)
        self._keys = {data_key.id: data_key.key for data_key in self.data_keys}
        self.active_id = active_id

    def knows(self, sealed: bytes) -> bool:
        """Whether the ring has the data key of a sealed secret."""
        return data_key_id_of(sealed) in self._keys

    def seal(self, plaintext: bytes, bound_to: str) -> bytes:
        """Encrypt a secret under the active data key. `bound_to` names the secret's database row as `table:id`."""
        head = _HEAD.pack(_VERSION, self.active_id)
        return head + _seal(self._keys[self.active_id], plaintext, head + bound_to.encode())

    def name_hash(self, name: str) -> str:
        """Return a hash of a name: 16 lower-case hex digits of an HMAC, with a key derived from the active data key."""
        key = HKDF(SHA256(), KEY_BYTES, None, _NAME_HASH).derive(self._keys[self.active_id])
        return hmac.digest(key, name.encode(errors="surrogatepass"), "sha256")[:_HASH_BYTES].hex()

    def unseal(self, sealed: bytes, bound_to: str) -> bytes:
        """Decrypt a secret that is bound to a row. Raises UnsealError if key, row or content is wrong."""
        data_key_id, name = data_key_id_of(sealed), f"the secret of {bound_to}"
        if data_key_id is None:
            raise UnsealError(f"{name} has an unknown format; a newer version may have written it")
        if data_key_id not in self._keys:
            raise UnsealError(f"{name} is sealed under data key {data_key_id}, which does not exist")
        head, rest = sealed[: _HEAD.size], sealed[_HEAD.size :]
        return _open(self._keys[data_key_id], rest, head + bound_to.encode(), name)


def data_key_id_of(sealed: bytes) -> int | None:
    """Return the id of the data key that sealed a secret, or None if the bytes are not a sealed secret."""
    if len(sealed) < _HEAD.size or not sealed.startswith(_VERSION):
        return None
    return int(_HEAD.unpack_from(sealed)[1])


def sealed_prefix(data_key_id: int) -> bytes:
    """Return the first bytes of every secret sealed under this data key."""
    return _HEAD.pack(_VERSION, data_key_id)


def new_kek() -> Kek:
    return Kek(os.urandom(KEY_BYTES))


def new_data_key(data_key_id: int) -> DataKey:
    return DataKey(data_key_id, os.urandom(KEY_BYTES))


def kek_line(kek: Kek) -> str:
    """Format a KEK as a line for `parse_keks`, with the KEK's id as a comment."""
    return f"{base64.b64encode(kek.key).decode()}  # {kek.id}\n"


def kek_of_line(line: str) -> Kek | None:
    """Parse one line of a text for `parse_keks`. Returns None for an empty line or a comment. Raises ValueError."""
    encoded = line.partition("#")[0].strip()
    return Kek(base64.b64decode(encoded, validate=True)) if encoded else None


def parse_keks(text: str) -> tuple[Kek, ...]:
    """Parse the text of a file or environment variable with key-encryption keys. The first key wraps new data keys.

    Each line has one key, 32 bytes in standard base64. `#` starts a comment. Raises ValueError with a message that
    never contains a key.
    """
    keks: list[Kek] = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            kek = kek_of_line(line)
        except ValueError:
            raise ValueError(f"line {number} is not the standard base64 of 32 bytes") from None
        if kek in keks:
            raise ValueError(f"line {number} repeats a key; remove the line")
        if kek is not None:
            keks.append(kek)
    if not keks:
        raise ValueError("it has no keys; write one key on each line")
    return tuple(keks)


def wrapping_context(data_key_id: int) -> bytes:
    """Return the additional authenticated data of a data key's wrapped forms."""
    return f"clustercert data key {data_key_id}".encode()


def _seal(key: bytes, plaintext: bytes, context: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, context)


def _open(key: bytes, sealed: bytes, context: bytes, name: str) -> bytes:
    # ValueError: nonce or ciphertext too short. InvalidTag: wrong key, row or content.
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
    except (InvalidTag, ValueError):
        raise UnsealError(f"{name} is damaged or belongs to another row") from None
