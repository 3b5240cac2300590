"""The Merkle tree: hashes, and inclusion and consistency proofs.

Height and index identify a complete subtree: node (h, i) covers the leaves from i * 2**h up to but excluding
(i + 1) * 2**h. A complete subtree's hash does not change when the tree grows.

Source: RFC 6962, section 2.1.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256().digest()


class ProofError(ValueError):
    """A proof does not verify."""


@dataclass(frozen=True, slots=True)
class Node:
    """A complete subtree with `2**height` leaves. `index` counts the subtrees of this height from the left, from 0."""

    height: int
    index: int


def leaf_hash(data: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def complete_root(hashes: Sequence[bytes]) -> bytes:
    """Compute the root hash of a complete subtree from the hashes of all its nodes at one height.

    The number of hashes must be a power of two.
    """
    while len(hashes) > 1:
        hashes = [node_hash(*hashes[at : at + 2]) for at in range(0, len(hashes), 2)]
    return hashes[0]


def subtrees(start: int, end: int) -> list[Node]:
    """The fewest complete subtrees that cover the leaves from `start` up to but excluding `end`, left to right."""
    nodes = []
    while start < end:
        # Find the highest complete subtree that starts at leaf `start` and does not extend beyond `end`.
        height = (end - start).bit_length() - 1
        if start:
            height = min(height, (start & -start).bit_length() - 1)
        nodes.append(Node(height, start >> height))
        start += 1 << height
    return nodes


def fold(hashes: Sequence[bytes]) -> bytes:
    """Combine the hashes of a range's `subtrees`, from right to left, into the hash of the range."""
    root, *others = reversed(hashes)
    for left in others:
        root = node_hash(left, root)
    return root


LeafRange = tuple[int, int]
"""A range of leaves: from the first index up to but excluding the second."""


def inclusion_ranges(index: int, size: int) -> list[LeafRange]:
    """Return the ranges of leaves whose hashes form a leaf's inclusion proof, in the order from the leaf to the root.

    Raises ValueError if the tree has no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError("the tree has no such leaf")
    return _inclusion_ranges(index, 0, size)


def _inclusion_ranges(index: int, start: int, end: int) -> list[LeafRange]:
    if end - start == 1:
        return []
    middle = start + _split(end - start)
    if index < middle:
        return [*_inclusion_ranges(index, start, middle), (middle, end)]
    return [*_inclusion_ranges(index, middle, end), (start, middle)]


def consistency_ranges(old: int, new: int) -> list[LeafRange]:
    """The ranges of leaves whose hashes form the consistency proof between two tree sizes, in the proof's order.

    The list is empty if the sizes are equal or the old size is 0. Raises ValueError if the old size is larger.
    """
    if not 0 <= old <= new:
        raise ValueError("the old size is larger than the new size")
    return _consistency_ranges(old, 0, new, whole=True) if old else []


def _consistency_ranges(old: int, start: int, end: int, *, whole: bool) -> list[LeafRange]:
    if old == end:
        # The verifier already knows the old tree's root, so the proof omits it.
        return [] if whole else [(start, end)]
    middle = start + _split(end - start)
    if old <= middle:
        return [*_consistency_ranges(old, start, middle, whole=whole), (middle, end)]
    return [*_consistency_ranges(old, middle, end, whole=False), (start, middle)]


def _split(count: int) -> int:
    """The largest power of two smaller than `count`."""
    return 1 << ((count - 1).bit_length() - 1)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Raise ProofError unless the proof shows that `leaf` is the hash of the tree's leaf at `index`."""
    if not 0 <= index < size:
        raise ProofError(f"a tree of size {size} has no leaf {index}")
    computed = leaf
    for (start, _), sibling in _steps(inclusion_ranges(index, size), proof):
        computed = node_hash(computed, sibling) if start > index else node_hash(sibling, computed)
    if computed != root:
        raise ProofError(f"leaf {index} is not in the tree of size {size} with this root")


def verify_consistency(
    old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Raise ProofError unless the proof shows that the new tree begins with the whole old tree."""
    if not 0 <= old_size <= new_size:
        raise ProofError(f"the old size {old_size} is larger than the new size {new_size}")
    steps = _steps(consistency_ranges(old_size, new_size), proof)
    if old_size == new_size and old_root != new_root:
        raise ProofError(f"two trees of size {new_size} have different roots")
    old, new = (old_root, old_root) if old_size else (EMPTY_ROOT, new_root)
    for (start, end), sibling in steps:
        if end == old_size:
            # The first hash in the proof is the hash of the old tree's last subtree, unless this subtree is the whole
            # old tree.
            old = new = sibling
        elif start >= old_size:
            new = node_hash(new, sibling)
        else:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
    if (old, new) != (old_root, new_root):
        raise ProofError(f"the tree of size {new_size} does not begin with the tree of size {old_size}")


def _steps(ranges: Sequence[LeafRange], proof: Sequence[bytes]) -> list[tuple[LeafRange, bytes]]:
    """Pair each range of leaves with its hash from the proof. Raises ProofError if the numbers differ."""
    if len(proof) != len(ranges):
        raise ProofError(f"the proof has {len(proof)} hashes instead of {len(ranges)}")
    return list(zip(ranges, proof, strict=True))


def root_of(size: int, node: Callable[[Node], bytes]) -> bytes:
    """Compute the root of a tree of this size. The function `node` returns the hash of a complete subtree."""
    return fold([node(each) for each in subtrees(0, size)]) if size else EMPTY_ROOT
