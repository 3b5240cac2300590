"""Transparency log primitives: Merkle tree, tiles, proofs, signed checkpoints. Pure functions without I/O.

Sources: RFC 6962 section 2.1, RFC 9162 section 2.1, and c2sp.org/tlog-tiles, /tlog-checkpoint, /signed-note.
"""
