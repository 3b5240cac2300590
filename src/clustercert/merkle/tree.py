"""The tree's hashes, which of them a proof consists of, and the check of a proof.

A subtree that is complete is named by its height and its place among those of this height: node (h, i) stands over the
leaves from i * 2**h to (i + 1) * 2**h. Whatever the size of the tree, such a node never changes once it is complete.

Source: RFC 6962, 2.1; the checks are those of RFC 9162, 2.1.3.2 and 2.1.4.2.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256().digest()


class ProofError(ValueError):
    """A proof does not prove what it should. The message says what is wrong, for whoever verifies."""


@dataclass(frozen=True, slots=True)
class Node:
    """A complete subtree: `2**height` leaves, the `index`-th of this height."""

    height: int
    index: int


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def complete_root(hashes: Sequence[bytes]) -> bytes:
    """The root over hashes whose number is a power of two."""
    while len(hashes) > 1:
        hashes = [node_hash(*hashes[at : at + 2]) for at in range(0, len(hashes), 2)]
    return hashes[0]


def subtrees(start: int, end: int) -> list[Node]:
    """The fewest complete subtrees that make up the leaves from `start` up to `end`, left to right."""
    nodes = []
    while start < end:
        # As high as the place allows, and not beyond the end.
        height = (end - start).bit_length() - 1
        if start:
            height = min(height, (start & -start).bit_length() - 1)
        nodes.append(Node(height, start >> height))
        start += 1 << height
    return nodes


def folded(hashes: Sequence[bytes]) -> bytes:
    """The hash over the subtrees of a range, which `subtrees` gives, from the right to the left."""
    root, *others = reversed(hashes)
    for left in others:
        root = node_hash(left, root)
    return root


Range = tuple[int, int]


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """The ranges of leaves whose hashes are the proof that a leaf is in a tree, lowest first.

    Raises ValueError where the tree has no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError("there is no such leaf in a tree of this size")
    ranges: list[Range] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start = middle
    return ranges[::-1]


def consistency_ranges(old: int, new: int) -> list[Range]:
    """The ranges of leaves whose hashes are the proof that a tree grew out of an older one, in the proof's order.

    Raises ValueError where the older one is larger. There is nothing to prove for an empty tree, nor for the same one.
    """
    if not 0 <= old <= new:
        raise ValueError("the older tree is not the smaller one")
    if old in (0, new):
        return []
    ranges: list[Range] = []
    start, end = 0, new
    whole = True
    while (left := old - start) != end - start:
        middle = start + _split(end - start)
        if left <= middle - start:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start, whole = middle, False
    # The old tree's own root is known to whoever checks.
    return ranges[::-1] if whole else [(start, end), *ranges[::-1]]


def _split(count: int) -> int:
    """The largest power of two smaller than this."""
    return 1 << ((count - 1).bit_length() - 1)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Raise ProofError unless the leaf hash is the tree's `index`-th."""
    if not 0 <= index < size:
        raise ProofError(f"there is no leaf {index} in a tree of {size}")
    number, last, computed = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise ProofError("the proof is too long")
        if number & 1 or number == last:
            computed = node_hash(sibling, computed)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            computed = node_hash(computed, sibling)
        number, last = number >> 1, last >> 1
    if last:
        raise ProofError("the proof is too short")
    if computed != root:
        raise ProofError(f"leaf {index} is not in the tree of {size} with this root")


def verify_consistency(
    old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Raise ProofError unless the new tree begins with all of the old one."""
    if not 0 <= old_size <= new_size:
        raise ProofError(f"a tree of {old_size} can't have grown to one of {new_size}")
    if old_size in (0, new_size):
        if proof:
            raise ProofError("the proof is too long")
        if old_size == 0 and old_root != EMPTY_ROOT:
            raise ProofError("the older root is not that of an empty tree")
        if old_size and old_root != new_root:
            raise ProofError(f"two trees of {new_size} have different roots")
        return
    _verify_grown(old_size, old_root, new_size, new_root, list(proof))


def _verify_grown(old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: list[bytes]) -> None:
    if old_size & (old_size - 1) == 0:
        # The old tree is a node of the new one.
        proof = [old_root, *proof]
    if not proof:
        raise ProofError("the proof is too short")
    number, last = old_size - 1, new_size - 1
    while number & 1:
        number, last = number >> 1, last >> 1
    old = new = proof[0]
    for sibling in proof[1:]:
        if last == 0:
            raise ProofError("the proof is too long")
        if number & 1 or number == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        number, last = number >> 1, last >> 1
    if last:
        raise ProofError("the proof is too short")
    if old != old_root or new != new_root:
        raise ProofError(f"the tree of {new_size} did not grow out of the tree of {old_size}")


class Frontier:
    """The right edge of a growing tree: enough to take in leaves one by one and to tell the root at any time."""

    def __init__(self) -> None:
        self.size = 0
        self._hashes: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """Take in the hash of the next leaf."""
        joined = leaf
        # As many subtrees end here as there are ones at the end of the size.
        for _ in range((~self.size & (self.size + 1)).bit_length() - 1):
            joined = node_hash(self._hashes.pop(), joined)
        self._hashes.append(joined)
        self.size += 1

    def root(self) -> bytes:
        """The root of the tree as it is now."""
        return folded(self._hashes) if self._hashes else EMPTY_ROOT


def root_of(size: int, node: Callable[[Node], bytes]) -> bytes:
    """The root of a tree, from the hashes of its complete subtrees."""
    return folded([node(each) for each in subtrees(0, size)]) if size else EMPTY_ROOT
