"""Files that prove that a log contains an entry: the inclusion proof, the signed checkpoint and extra data.

Source: c2sp.org/tlog-proof.
"""

import base64
import binascii
import re
from dataclasses import dataclass

from clustercert.merkle.notes import Checkpoint, VerifierKey, verify_checkpoint
from clustercert.merkle.tree import HASH_BYTES, ProofError, leaf_hash, verify_inclusion

_VERSION = "c2sp.org/tlog-proof@v1"
_INDEX = re.compile(r"index (0|[1-9][0-9]{0,18})", re.ASCII)
_MAX_HASHES = 64


@dataclass(frozen=True, slots=True)
class ProofFile:
    """The content of a proof file.

    Attributes:
        extra: what the application adds. In this log: the event's salt, followed by its canonical JSON.
        leaf_index: the entry's position in the log.
        hashes: the inclusion proof (RFC 6962, section 2.1.1), 32 bytes each.
        checkpoint: the signed note.
    """

    extra: bytes
    leaf_index: int
    hashes: tuple[bytes, ...]
    checkpoint: str

    def __str__(self) -> str:
        hashes = "".join(f"{_encoded(each)}\n" for each in self.hashes)
        head = f"{_VERSION}\nextra {_encoded(self.extra)}\nindex {self.leaf_index}\n"
        return f"{head}{hashes}\n{self.checkpoint}"

    @classmethod
    def parse(cls, text: str) -> "ProofFile":
        """Parse a proof file. Raises ProofError."""
        head, blank, checkpoint = text.partition("\n\n")
        version, extra, index, *hashes = [*head.split("\n"), "", ""][: 3 + _MAX_HASHES]
        number = _INDEX.fullmatch(index)
        if version != _VERSION or not extra.startswith("extra ") or number is None or not blank:
            raise ProofError(f"the file must begin with {_VERSION}, and have the lines `extra` and `index`")
        decoded = tuple(_decoded(each) for each in hashes if each)
        if any(len(each) != HASH_BYTES for each in decoded):
            raise ProofError(f"the hashes of the proof must have {HASH_BYTES} bytes each")
        return cls(_decoded(extra.removeprefix("extra ")), int(number[1]), decoded, checkpoint)

    def verify(self, entry: bytes, key: VerifierKey) -> Checkpoint:
        """Verify that the log contains this entry. `key` is the log's verifier key. Returns the checkpoint.

        Raises NoteError if the checkpoint is not signed by the key, or ProofError.
        """
        checkpoint = verify_checkpoint(self.checkpoint, key)
        verify_inclusion(leaf_hash(entry), self.leaf_index, checkpoint.size, self.hashes, checkpoint.root)
        return checkpoint


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProofError("the file contains a line that is not base64") from error
