"""Signed notes, and the checkpoints that are signed as such: a log's size and root, under its name and key.

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

# The signature type of Ed25519.
_ED25519 = b"\x01"
_KEY_ID_BYTES = 4
MAX_NOTE = 64 * 1024

_NAME = re.compile(r"[^\s+]{1,255}")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)


class NoteError(ValueError):
    """A note is not what it should be: malformed, by an unknown key, or changed. The message says which."""


def is_name(name: str) -> bool:
    """Whether a key, and a log, may be called this."""
    return _NAME.fullmatch(name) is not None and name.isprintable()


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """What a reader needs to know of a log to trust its checkpoints.

    Attributes:
        name: of the key; the same as the log's origin.
        public_key: 32 bytes, Ed25519.
    """

    name: str
    public_key: bytes

    @property
    def id(self) -> bytes:
        """4 bytes that stand before each of its signatures."""
        digest = hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public_key)
        return digest.digest()[:_KEY_ID_BYTES]

    def __str__(self) -> str:
        """The one line in which keys are handed round: name, id in hex, type and key in base64."""
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(_ED25519 + self.public_key).decode()}"

    @classmethod
    def parsed(cls, text: str) -> "VerifierKey":
        """The key in such a line. Raises NoteError."""
        name, _, rest = text.strip().partition("+")
        key_id, _, encoded = rest.partition("+")
        key = _decoded(encoded)
        if not is_name(name) or key is None or key[:1] != _ED25519 or len(key) != 1 + HASH_BYTES:
            raise NoteError("the verifier key is not of the form name+id+key, with an Ed25519 key")
        found = cls(name, key[1:])
        if found.id.hex() != key_id:
            raise NoteError(
                "the verifier key's id does not belong to its name and key: a part of it is changed"
            )
        return found


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log at one moment.

    Attributes:
        origin: the log's name.
        size: how many leaves.
        root: 32 bytes.
    """

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """What is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def signed(text: str, name: str, key: Ed25519PrivateKey) -> str:
    """A text as a note under one key. The text ends with a newline and has no other control characters."""
    verifier = VerifierKey(name, key.public_key().public_bytes_raw())
    signature = base64.b64encode(verifier.id + key.sign(text.encode())).decode()
    return f"{text}\n\N{EM DASH} {name} {signature}\n"


def opened(note: str, verifier: VerifierKey) -> Checkpoint:
    """The checkpoint in a note that this key signed, for the log of the key's name. Raises NoteError."""
    text = opened_text(note, verifier)
    origin, size, root, *_extensions = [*text.split("\n"), "", ""]
    decoded = _decoded(root)
    if not _SIZE.fullmatch(size) or decoded is None or len(decoded) != HASH_BYTES:
        raise NoteError("the note is not a checkpoint: it needs an origin, a size and a root, a line each")
    if origin != verifier.name:
        raise NoteError(f"the checkpoint is of the log {origin}, and the key belongs to {verifier.name}")
    return Checkpoint(origin, int(size), decoded)


def opened_text(note: str, verifier: VerifierKey) -> str:
    """The text of a note that this key signed. Raises NoteError."""
    body, separator, lines = note.rpartition("\n\n")
    if not separator or len(note) > MAX_NOTE or re.search(r"[\x00-\x09\x0b-\x1f]", note):
        raise NoteError("this is no signed note")
    text = f"{body}\n"
    verified = False
    for name, signature in _signatures(lines):
        if name == verifier.name and signature[:_KEY_ID_BYTES] == verifier.id:
            _check(text, signature[_KEY_ID_BYTES:], verifier)
            verified = True
    if not verified:
        raise NoteError(f"the note is not signed by the key {verifier.name}+{verifier.id.hex()}")
    return text


def _signatures(lines: str) -> Iterator[tuple[str, bytes]]:
    if not lines.endswith("\n"):
        raise NoteError("the note is cut off")
    for line in lines[:-1].split("\n"):
        dash, _, rest = line.partition(" ")
        name, _, encoded = rest.partition(" ")
        signature = _decoded(encoded)
        if dash != "\N{EM DASH}" or not name or signature is None or len(signature) <= _KEY_ID_BYTES:
            raise NoteError("the note has a line among its signatures that is none")
        yield name, signature


def _check(text: str, signature: bytes, verifier: VerifierKey) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(verifier.public_key).verify(signature, text.encode())
    except (InvalidSignature, ValueError) as error:
        raise NoteError("the note's signature is wrong: its text is not what the key signed") from error


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
