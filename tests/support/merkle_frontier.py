"""The root of a growing Merkle tree, computed leaf by leaf, as a reference."""

from clustercert.merkle.tree import EMPTY_ROOT, fold, node_hash


class Frontier:
    """The right edge of a growing tree."""

    def __init__(self) -> None:
        self.size = 0
        self._hashes: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """Append the hash of the next leaf."""
        joined = leaf
        # One subtree is completed for each trailing 1 bit of the size.
        for _ in range((~self.size & (self.size + 1)).bit_length() - 1):
            joined = node_hash(self._hashes.pop(), joined)
        self._hashes.append(joined)
        self.size += 1

    def root(self) -> bytes:
        """The current root."""
        return fold(self._hashes) if self._hashes else EMPTY_ROOT
