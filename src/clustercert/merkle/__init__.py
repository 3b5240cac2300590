"""The mathematics of a transparency log: the tree, its tiles, its signed notes. Pure; knows no store and no events.

Sources: RFC 6962 section 2.1, RFC 9162 section 2.1, and c2sp.org/tlog-tiles, /tlog-checkpoint, /signed-note.
"""

from clustercert.merkle.notes import Checkpoint, NoteError, VerifierKey, opened, signed
from clustercert.merkle.tiles import PathError, TileId, TilePath
from clustercert.merkle.tree import EMPTY_ROOT, Frontier, ProofError, leaf_hash, node_hash

__all__ = [
    "EMPTY_ROOT",
    "Checkpoint",
    "Frontier",
    "NoteError",
    "PathError",
    "ProofError",
    "TileId",
    "TilePath",
    "VerifierKey",
    "leaf_hash",
    "node_hash",
    "opened",
    "signed",
]
