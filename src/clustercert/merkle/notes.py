"""Signed notes and checkpoints. A checkpoint is a signed note that contains the size and the root hash of a log.

Sources: c2sp.org/signed-note, c2sp.org/tlog-checkpoint.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from clustercert.merkle.tree import HASH_BYTES

# The signature type for Ed25519.
_ED25519 = b"\x01"
_KEY_ID_BYTES = 4
MAX_NOTE = 64 * 1024

_NAME = re.compile(r"[^\s+]{1,255}")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)


class NoteError(ValueError):
    """A note or verifier key is malformed, or a note was changed or is not signed by the expected key."""


def is_name(name: str) -> bool:
    """Whether the text is a valid name for a log and its key."""
    return _NAME.fullmatch(name) is not None and name.isprintable()


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """The public key that verifies a log's checkpoints.

    Attributes:
        name: the key's name, which is also the log's name.
        public_key: 32 bytes, Ed25519.
    """

    name: str
    public_key: bytes

    @property
    def id(self) -> bytes:
        """The key id: the 4 bytes at the start of each signature that this key verifies."""
        digest = hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public_key)
        return digest.digest()[:_KEY_ID_BYTES]

    def __str__(self) -> str:
        """Encode the key as `NAME+ID+KEY`. ID is in hex. KEY is the type byte and the public key, in base64."""
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(_ED25519 + self.public_key).decode()}"

    @classmethod
    def parse(cls, text: str) -> "VerifierKey":
        """Parse a key of the form `NAME+ID+KEY`. Raises NoteError."""
        name, _, rest = text.strip().partition("+")
        key_id, _, encoded = rest.partition("+")
        key = _decoded(encoded)
        if not is_name(name) or key is None or key[:1] != _ED25519 or len(key) != 1 + HASH_BYTES:
            raise NoteError("the verifier key does not have the form NAME+ID+KEY with an Ed25519 key")
        found = cls(name, key[1:])
        if found.id.hex() != key_id:
            raise NoteError("the verifier key's id does not match its name and key")
        return found


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The size and root hash of a log.

    Attributes:
        origin: the log's name.
        size: number of leaves.
        root: 32 bytes.
    """

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """Return the checkpoint as text, which is the part of the note that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def sign_note(text: str, name: str, key: Ed25519PrivateKey) -> str:
    """Sign a note. The text must end with a newline, and contain no control characters except newlines."""
    verifier = VerifierKey(name, key.public_key().public_bytes_raw())
    signature = base64.b64encode(verifier.id + key.sign(text.encode())).decode()
    return f"{text}\n\N{EM DASH} {name} {signature}\n"


def verify_checkpoint(note: str, verifier: VerifierKey) -> Checkpoint:
    """Verify a note and parse its checkpoint. Raises NoteError, for example if log and key have different names."""
    text = verify_note(note, verifier)
    origin, size, root, *_extensions = [*text.split("\n"), "", ""]
    decoded = _decoded(root)
    if not _SIZE.fullmatch(size) or decoded is None or len(decoded) != HASH_BYTES:
        raise NoteError(
            "the note is not a checkpoint: it must have an origin, a size and a root, one line each"
        )
    if origin != verifier.name:
        raise NoteError(f"the checkpoint belongs to the log {origin}, but the key belongs to {verifier.name}")
    return Checkpoint(origin, int(size), decoded)


def verify_note(note: str, verifier: VerifierKey) -> str:
    """Verify a note's signature. Returns the note's text. Raises NoteError."""
    body, separator, lines = note.rpartition("\n\n")
    if not separator or len(note) > MAX_NOTE or re.search(r"[\x00-\x09\x0b-\x1f]", note):
        raise NoteError("the text is not a signed note")
    text = f"{body}\n"
    verified = False
    for name, signature in _signatures(lines):
        if name == verifier.name and signature[:_KEY_ID_BYTES] == verifier.id:
            try:
                key = Ed25519PublicKey.from_public_bytes(verifier.public_key)
                key.verify(signature[_KEY_ID_BYTES:], text.encode())
            except (InvalidSignature, ValueError) as error:
                raise NoteError("the note's signature does not verify: the note was changed") from error
            verified = True
    if not verified:
        raise NoteError(f"the note is not signed by the key {verifier.name}+{verifier.id.hex()}")
    return text


def _signatures(lines: str) -> Iterator[tuple[str, bytes]]:
    if not lines.endswith("\n"):
        raise NoteError("the note is truncated")
    for line in lines[:-1].split("\n"):
        dash, _, rest = line.partition(" ")
        name, _, encoded = rest.partition(" ")
        signature = _decoded(encoded)
        if dash != "\N{EM DASH}" or not name or signature is None or len(signature) <= _KEY_ID_BYTES:
            raise NoteError("the note has an invalid signature line")
        yield name, signature


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
