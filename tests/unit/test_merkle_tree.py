"""The tree: known answers, and every proof of small trees against a tree that is written as RFC 6962 defines it."""

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.merkle.tree import (
    EMPTY_ROOT,
    Node,
    ProofError,
    consistency_ranges,
    fold,
    inclusion_ranges,
    leaf_hash,
    node_hash,
    root_of,
    subtrees,
    verify_consistency,
    verify_inclusion,
)
from support.merkle_frontier import Frontier

LARGEST = 70
LEAVES = [index.to_bytes(2, "big") for index in range(LARGEST)]

# Source: certificate-transparency, merkle_tree_test.cc; used by every implementation since.
CT_LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
CT_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
CT_INCLUSION = {
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
CT_CONSISTENCY = {
    (1, 1): [],
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}


def mth(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, 2.1, word for word."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = split(len(leaves))
    return hashlib.sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    """RFC 6962, 2.1.1."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: Sequence[bytes], *, known: bool) -> list[bytes]:
    """RFC 6962, 2.1.2."""
    if m == len(leaves):
        return [] if known else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], known=known), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], known=False), mth(leaves[:k])]


def split(count: int) -> int:
    k = 1
    while 2 * k < count:
        k *= 2
    return k


def made(ranges: Sequence[tuple[int, int]], leaves: Sequence[bytes] = LEAVES) -> list[bytes]:
    """A proof of these ranges, from complete subtrees alone, as the log has them."""
    return [fold([node(leaves, each) for each in subtrees(*bounds)]) for bounds in ranges]


def node(leaves: Sequence[bytes], which: Node) -> bytes:
    return mth(leaves[which.index << which.height : (which.index + 1) << which.height])


@pytest.mark.parametrize("size", range(9))
def test_the_known_roots(size: int) -> None:
    leaves = CT_LEAVES[:size]
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf_hash(leaf))
    assert frontier.root().hex() == CT_ROOTS[size]
    assert root_of(size, lambda which: node(leaves, which)).hex() == CT_ROOTS[size]
    assert mth(leaves).hex() == CT_ROOTS[size]


@pytest.mark.parametrize(("place", "proof"), CT_INCLUSION.items())
def test_the_known_inclusion_proofs(place: tuple[int, int], proof: list[str]) -> None:
    index, size = place
    assert [each.hex() for each in made(inclusion_ranges(index, size), CT_LEAVES)] == proof
    root = bytes.fromhex(CT_ROOTS[size])
    verify_inclusion(leaf_hash(CT_LEAVES[index]), index, size, [bytes.fromhex(each) for each in proof], root)


@pytest.mark.parametrize(("sizes", "proof"), CT_CONSISTENCY.items())
def test_the_known_consistency_proofs(sizes: tuple[int, int], proof: list[str]) -> None:
    old, new = sizes
    assert [each.hex() for each in made(consistency_ranges(old, new), CT_LEAVES)] == proof
    old_root, new_root = (bytes.fromhex(CT_ROOTS[size]) for size in sizes)
    verify_consistency(old, old_root, new, new_root, [bytes.fromhex(each) for each in proof])


@pytest.mark.parametrize("size", range(1, LARGEST + 1))
def test_inclusion_proofs_match_the_definition_and_verify(size: int) -> None:
    root = mth(LEAVES[:size])
    for index in range(size):
        proof = made(inclusion_ranges(index, size))
        assert proof == path(index, LEAVES[:size])
        verify_inclusion(leaf_hash(LEAVES[index]), index, size, proof, root)


@pytest.mark.parametrize("new", range(1, LARGEST + 1))
def test_consistency_proofs_match_the_definition_and_verify(new: int) -> None:
    for old in range(1, new + 1):
        proof = made(consistency_ranges(old, new))
        assert proof == subproof(old, LEAVES[:new], known=True)
        verify_consistency(old, mth(LEAVES[:old]), new, mth(LEAVES[:new]), proof)


def test_the_frontier_knows_the_root_at_every_size() -> None:
    frontier = Frontier()
    assert frontier.root() == EMPTY_ROOT
    for size, leaf in enumerate(LEAVES, start=1):
        frontier.append(leaf_hash(leaf))
        assert (frontier.size, frontier.root()) == (size, mth(LEAVES[:size]))


@given(start=st.integers(0, 1 << 40), count=st.integers(0, 1 << 40))
def test_subtrees_make_up_their_range_and_are_few(start: int, count: int) -> None:
    at = start
    nodes = subtrees(start, start + count)
    for each in nodes:
        assert each.index << each.height == at
        at += 1 << each.height
    assert at == start + count
    assert len(nodes) <= 2 * max(1, count.bit_length())


sizes = st.integers(2, LARGEST)


def changed(data: st.DataObject, proof: list[bytes]) -> list[bytes]:
    """The same proof with one thing wrong."""
    what = data.draw(st.sampled_from(["bit", "shorter", "longer", "order"] if len(proof) > 1 else ["longer"]))
    position = data.draw(st.integers(0, len(proof) - 1)) if proof else 0
    if what == "bit":
        bit = data.draw(st.integers(0, 255))
        wrong = bytearray(proof[position])
        wrong[bit // 8] ^= 1 << bit % 8
        return [*proof[:position], bytes(wrong), *proof[position + 1 :]]
    if what == "shorter":
        return proof[:position] + proof[position + 1 :]
    if what == "longer":
        return [*proof[:position], bytes(32), *proof[position:]]
    return [*proof[1:], proof[0]]


@given(data=st.data(), size=sizes)
def test_a_changed_inclusion_proof_is_refused(data: st.DataObject, size: int) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof = changed(data, path(index, LEAVES[:size]))
    with pytest.raises(ProofError):
        verify_inclusion(leaf_hash(LEAVES[index]), index, size, proof, mth(LEAVES[:size]))


@given(data=st.data(), size=sizes)
def test_a_proof_of_another_leaf_place_or_root_is_refused(data: st.DataObject, size: int) -> None:
    index = data.draw(st.integers(0, size - 1))
    other = data.draw(st.integers(0, size - 1).filter(lambda drawn: drawn != index))
    proof, root = path(index, LEAVES[:size]), mth(LEAVES[:size])
    for leaf, at, against in (
        (LEAVES[other], index, root),
        (LEAVES[index], other, root),
        (LEAVES[index], index, mth(LEAVES[: size - 1])),
        (LEAVES[index], size, root),
        (LEAVES[index], -1, root),
    ):
        with pytest.raises(ProofError):
            verify_inclusion(leaf_hash(leaf), at, size, proof, against)


@given(data=st.data(), new=sizes)
def test_a_changed_consistency_proof_is_refused(data: st.DataObject, new: int) -> None:
    old = data.draw(st.integers(1, new - 1))
    proof = changed(data, subproof(old, LEAVES[:new], known=True))
    with pytest.raises(ProofError):
        verify_consistency(old, mth(LEAVES[:old]), new, mth(LEAVES[:new]), proof)


@given(data=st.data(), new=sizes)
def test_a_change_to_the_old_tree_is_detected(data: st.DataObject, new: int) -> None:
    """Whatever the changed log offers as its proof, it does not fit the head that somebody kept."""
    old = data.draw(st.integers(1, new))
    forged = list(LEAVES[:new])
    forged[data.draw(st.integers(0, old - 1))] = b"forged"
    proof = subproof(old, forged, known=True)
    with pytest.raises(ProofError):
        verify_consistency(old, mth(LEAVES[:old]), new, mth(forged), proof)


def test_consistency_of_empty_and_shrunk_trees() -> None:
    verify_consistency(0, EMPTY_ROOT, 5, mth(LEAVES[:5]), [])
    for old, root, proof in ((0, bytes(32), []), (0, EMPTY_ROOT, [bytes(32)]), (6, mth(LEAVES[:6]), [])):
        with pytest.raises(ProofError):
            verify_consistency(old, root, 5, mth(LEAVES[:5]), proof)
    with pytest.raises(ProofError, match="different roots"):
        verify_consistency(5, bytes(32), 5, mth(LEAVES[:5]), [])


@pytest.mark.parametrize(("index", "size"), [(0, 0), (3, 3), (-1, 3)])
def test_there_is_no_proof_of_a_missing_leaf(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="no such leaf"):
        inclusion_ranges(index, size)


@pytest.mark.parametrize(("old", "new"), [(4, 3), (-1, 3)])
def test_there_is_no_proof_of_shrinking(old: int, new: int) -> None:
    with pytest.raises(ValueError, match="larger than the new size"):
        consistency_ranges(old, new)


def test_leaf_and_node_hashes_differ() -> None:
    assert leaf_hash(bytes(64)) != node_hash(bytes(32), bytes(32))
