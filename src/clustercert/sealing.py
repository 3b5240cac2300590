"""Envelope encryption of secrets at rest: key-encryption keys wrap data keys, data keys seal secrets.

Pure: where the keys are kept, and how they are exchanged for new ones, is `custody`'s business.

A sealed secret is   version (1) | data-key id (4) | nonce (12) | ciphertext and tag
A wrapped data key is version (1) | nonce (12) | ciphertext and tag

AES-256-GCM for both. What a secret belongs to is authenticated with it, so that a sealed secret which is
moved to another row does not open there.
"""

import base64
import hashlib
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from clustercert.errors import SealError

KEY_BYTES = 32
_NONCE_BYTES = 12
_VERSION = b"\x01"
_HEAD = struct.Struct(">cI")


class Unsealer(Protocol):
    """Opens what is sealed at rest; `custody` fills it."""

    async def unseal(self, sealed: bytes, bound_to: str) -> bytes: ...


class Sealer(Unsealer, Protocol):
    """Seals what is kept at rest, too."""

    async def seal(self, plaintext: bytes, bound_to: str) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Kek:
    """A key-encryption key; it wraps data keys and never meets a secret.

    Attributes:
        id: 16 lower-case hex digits, derived from the key, safe to show.
        key: 32 bytes.
    """

    key: bytes = field(repr=False)
    id: str = field(init=False)

    def __post_init__(self) -> None:
        if len(self.key) != KEY_BYTES:
            raise ValueError("a key-encryption key has 32 bytes")
        digest = hashlib.sha256(b"clustercert key-encryption key id\0" + self.key)
        object.__setattr__(self, "id", digest.hexdigest()[:16])


@dataclass(frozen=True, slots=True)
class DataKey:
    """A key that seals secrets.

    Attributes:
        id: a positive number of at most 32 bits, never used again for another key.
        key: 32 bytes.
    """

    id: int
    key: bytes = field(repr=False)

    def wrap(self, kek: Kek) -> bytes:
        """This key, to be kept in the database."""
        nonce = os.urandom(_NONCE_BYTES)
        return _VERSION + nonce + AESGCM(kek.key).encrypt(nonce, self.key, _wrapping_context(self.id))

    @classmethod
    def unwrap(cls, data_key_id: int, wrapped: bytes, kek: Kek) -> "DataKey":
        """The key out of the database. Raises SealError."""
        version, nonce, rest = wrapped[:1], wrapped[1 : 1 + _NONCE_BYTES], wrapped[1 + _NONCE_BYTES :]
        if version != _VERSION:
            raise SealError(f"data key {data_key_id} is wrapped in a form unknown to this version")
        key = _open(kek.key, nonce, rest, _wrapping_context(data_key_id), f"data key {data_key_id}")
        if len(key) != KEY_BYTES:
            raise SealError(f"data key {data_key_id} has the wrong length")
        return cls(data_key_id, key)


class KeyRing:
    """All data keys of a database, unwrapped. Immutable.

    Attributes:
        data_keys: in the order they were given.
        active_id: the data key that seals; the others only unseal.
    """

    def __init__(self, data_keys: Iterable[DataKey], active_id: int) -> None:
        self.data_keys = tuple(data_keys)
        self._keys = {data_key.id: data_key.key for data_key in self.data_keys}
        self.active_id = active_id

    def knows(self, sealed: bytes) -> bool:
        """Whether the data key that a sealed secret names is on this ring."""
        return data_key_id_of(sealed) in self._keys

    def seal(self, plaintext: bytes, bound_to: str) -> bytes:
        """Seal a secret for one row, named `table:id`, under the active data key."""
        head = _HEAD.pack(_VERSION, self.active_id)
        nonce = os.urandom(_NONCE_BYTES)
        ciphertext = AESGCM(self._keys[self.active_id]).encrypt(nonce, plaintext, head + bound_to.encode())
        return head + nonce + ciphertext

    def unseal(self, sealed: bytes, bound_to: str) -> bytes:
        """The secret of that row. Raises SealError."""
        data_key_id = data_key_id_of(sealed)
        if data_key_id is None:
            raise SealError(f"the secret of {bound_to} is not sealed in a form known to this version")
        if data_key_id not in self._keys:
            raise SealError(f"the secret of {bound_to} is sealed by data key {data_key_id}, which is unknown")
        head, rest = sealed[: _HEAD.size], sealed[_HEAD.size :]
        nonce, ciphertext = rest[:_NONCE_BYTES], rest[_NONCE_BYTES:]
        name = f"the secret of {bound_to}"
        return _open(self._keys[data_key_id], nonce, ciphertext, head + bound_to.encode(), name)


def data_key_id_of(sealed: bytes) -> int | None:
    """Which data key a sealed secret names; None where it is not a sealed secret."""
    if len(sealed) < _HEAD.size or not sealed.startswith(_VERSION):
        return None
    return int(_HEAD.unpack_from(sealed)[1])


def sealed_prefix(data_key_id: int) -> bytes:
    """How everything begins that this data key has sealed."""
    return _HEAD.pack(_VERSION, data_key_id)


def new_kek() -> Kek:
    return Kek(os.urandom(KEY_BYTES))


def new_data_key(data_key_id: int) -> DataKey:
    return DataKey(data_key_id, os.urandom(KEY_BYTES))


def kek_line(kek: Kek) -> str:
    """The key as a line for `parse_keks`, with its id as a comment."""
    return f"{base64.b64encode(kek.key).decode()}  # {kek.id}\n"


def kek_of_line(line: str) -> Kek | None:
    """The key of one line; None for a line of comment or nothing. Raises ValueError."""
    encoded = line.partition("#")[0].strip()
    if not encoded:
        return None
    return Kek(base64.b64decode(encoded, validate=True))


def parse_keks(text: str) -> tuple[Kek, ...]:
    """The key-encryption keys of a file or variable: the first one wraps, all unwrap.

    One a line, standard base64 of 32 bytes; `#` starts a comment. Raises ValueError with a reason that shows
    nothing of the content.
    """
    keks: list[Kek] = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            kek = kek_of_line(line)
        except ValueError:
            raise ValueError(f"line {number} is not the standard base64 of 32 bytes") from None
        if kek in keks:
            raise ValueError(f"line {number} repeats a key")
        if kek is not None:
            keks.append(kek)
    if not keks:
        raise ValueError("it holds no key")
    return tuple(keks)


def _wrapping_context(data_key_id: int) -> bytes:
    return f"clustercert data key {data_key_id}".encode()


def _open(key: bytes, nonce: bytes, ciphertext: bytes, context: bytes, name: str) -> bytes:
    # A shortened nonce or ciphertext is a ValueError in the library, a changed one an InvalidTag.
    try:
        return AESGCM(key).decrypt(nonce, ciphertext, context)
    except (InvalidTag, ValueError):
        raise SealError(f"{name} is damaged, or belongs elsewhere") from None
