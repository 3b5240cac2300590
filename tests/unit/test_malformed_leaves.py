"""What no library would write: whatever bytes or objects a signer answers, they are the leaf, or a SignerError."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clustercert.model import KeyType, PrivateKey, SigningRequest, credential_number
from clustercert.model.errors import SignerError
from clustercert.pki.keys import new_key
from clustercert.pki.leaf import CheckedLeaf, check_leaf, serial_and_signature
from support.asn1 import BIT_STRING, INTEGER, SEQUENCE, der, inside
from support.leaf_builder import LeafBuilder
from support.samples import CA_KEY, client_ca, grant

SERIAL = 0x7F00FF << 128
CA_KEYS: dict[KeyType, PrivateKey] = {
    "ec-p256": CA_KEY,
    "ec-p384": new_key("ec-p384"),
    "ed25519": new_key("ed25519"),
    "rsa-2048": new_key("rsa-2048"),
}
REQUESTS = {
    kind: SigningRequest(
        grant(), new_key("ec-p256").public_key(), client_ca(key), credential_number(SERIAL), SERIAL
    )
    for kind, key in CA_KEYS.items()
}
LEAVES = {
    kind: LeafBuilder(request.ca.ca_certificate, CA_KEYS[kind]).build(request)
    for kind, request in REQUESTS.items()
}
REQUEST, LEAF = REQUESTS["ec-p256"], LEAVES["ec-p256"]
# The library warns of some of what is wrong here; without this, that would be an exception in tests alone.
pytestmark = pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")

Change = Callable[[bytes], bytes]


def _flip(at: int, bit: int) -> Change:
    def change(whole: bytes) -> bytes:
        changed = bytearray(whole)
        if changed:
            changed[at % len(changed)] ^= 1 << bit
        return bytes(changed)

    return change


def _replace(at: int, length: int, by: bytes) -> Change:
    return lambda whole: whole[: at % (len(whole) + 1)] + by + whole[at % (len(whole) + 1) + length :]


def _duplicate(at: int, length: int) -> Change:
    def change(whole: bytes) -> bytes:
        start = at % (len(whole) + 1)
        return whole[: start + length] + whole[start:]

    return change


# Half of them where the structure is: at the beginning, and where the signature begins.
PLACES = st.one_of(st.integers(0, 1200), st.integers(0, 40), st.integers(-90, -1))
LENGTHS = st.one_of(st.integers(1, 8), st.integers(1, 600))
CHANGES = st.lists(
    st.one_of(
        st.builds(_flip, PLACES, st.integers(0, 7)),
        st.builds(_replace, PLACES, LENGTHS, st.just(b"")),
        st.builds(_replace, PLACES, st.just(0), st.binary(min_size=1, max_size=8)),
        st.builds(_replace, PLACES, LENGTHS, st.binary(min_size=1, max_size=8)),
        st.builds(_duplicate, PLACES, LENGTHS),
    ),
    min_size=1,
    max_size=3,
)


def changed(whole: bytes, changes: list[Change]) -> bytes:
    for change in changes:
        whole = change(whole)
    return whole


def resigned(tbs: bytes) -> bytes:
    """These bytes, whatever they are, signed by the CA's own key and framed as a certificate is."""
    algorithm = inside(LEAF)[1]
    assert isinstance(CA_KEY, ec.EllipticCurvePrivateKey)
    signature = CA_KEY.sign(tbs, ec.ECDSA(hashes.SHA256()))
    return der(SEQUENCE, tbs, algorithm, der(BIT_STRING, b"\0" + signature))


def renumbered(serial: bytes) -> bytes:
    """The leaf with another element in the place of its serial, signed anew."""
    version, _, *rest = inside(inside(LEAF)[0])
    return resigned(der(SEQUENCE, version, serial, *rest))


def expected(leaf: bytes, request: SigningRequest) -> CheckedLeaf:
    return CheckedLeaf(leaf, SERIAL, request.grant.not_before, request.grant.not_after)


@pytest.mark.parametrize("kind", LEAVES)
def test_the_leaf_as_it_was_made_is_accepted(kind: KeyType) -> None:
    assert check_leaf((LEAVES[kind],), REQUESTS[kind]) == expected(LEAVES[kind], REQUESTS[kind])


@pytest.mark.parametrize("kind", LEAVES)
@given(changes=CHANGES)
@settings(max_examples=400, deadline=None)
def test_a_leaf_that_was_changed_anywhere_is_refused(kind: KeyType, changes: list[Change]) -> None:
    answered = changed(LEAVES[kind], changes)
    if answered == LEAVES[kind]:
        assert check_leaf((answered,), REQUESTS[kind]) == expected(answered, REQUESTS[kind])
        return
    with pytest.raises(SignerError):
        check_leaf((answered,), REQUESTS[kind])


@given(changes=CHANGES)
@settings(max_examples=600, deadline=None)
def test_a_leaf_changed_before_signing_may_differ_in_its_serial_only(
    changes: list[Change],
) -> None:
    request = replace(REQUEST, serial=None)
    original = inside(LEAF)[0]
    tbs = changed(original, changes)
    answered = resigned(tbs)
    try:
        checked = check_leaf((answered,), request)
    except SignerError:
        return
    assert checked.der == answered
    assert 0 < checked.serial < 1 << 159
    parts, number = inside(original), checked.serial.to_bytes(checked.serial.bit_length() // 8 + 1, "big")
    assert tbs == der(SEQUENCE, parts[0], der(INTEGER, number), *parts[2:])


@pytest.mark.parametrize("kind", LEAVES)
@pytest.mark.parametrize("octets", [0, 1, 63, 64, 65, 72, 96, 255, 256, 257, 70000])
def test_a_signature_of_any_length_that_is_none_of_the_cas_is_refused(kind: KeyType, octets: int) -> None:
    tbs, algorithm, _ = inside(LEAVES[kind])
    for filled in (b"\0", b"\x30", b"\xff"):
        answered = der(SEQUENCE, tbs, algorithm, der(BIT_STRING, b"\0" + filled * octets))
        with pytest.raises(SignerError, match="does not verify"):
            check_leaf((answered,), REQUESTS[kind])


@given(st.binary(max_size=200))
@example(b"")
@example(b"\x30")
@example(b"\x30\x80")
@example(b"\x30" + b"\xff" * 300)
@example(b"\x30\x84\xff\xff\xff\xff" * 9)
@example(b"\x30\x03\x30\x01\xa0")
def test_bytes_that_are_no_certificate_are_refused(answered: bytes) -> None:
    with pytest.raises(SignerError):
        check_leaf((answered,), REQUEST)


@given(st.binary(max_size=200))
@example(b"\x30" + b"\xff" * 300)
@settings(max_examples=300)
def test_reading_finds_something_or_raises_a_value_error(answered: bytes) -> None:
    try:
        serial, signature = serial_and_signature(answered)
    except ValueError:
        return
    assert serial >= 0
    assert signature == b"" or answered.endswith(signature)


def test_a_leaf_that_was_cut_off_anywhere_is_refused() -> None:
    for length in range(len(LEAF)):
        with pytest.raises(SignerError):
            check_leaf((LEAF[:length],), REQUEST)


TBS, ALGORITHM, SIGNATURE = inside(LEAF)
CONTENT = LEAF[4:]


def _long(element: bytes) -> bytes:
    """The same element with a length that is an octet longer than it has to be."""
    size, start = element[1], 2
    if size & 0x80:
        start += size & 0x7F
        size = int.from_bytes(element[2:start], "big")
    octets = size.to_bytes((size.bit_length() + 7) // 8 + 1, "big")
    return element[:1] + bytes([0x80 | len(octets)]) + octets + element[start:]


NUMBER = SERIAL.to_bytes(20, "big").lstrip(b"\0")
GARBLED = {
    "an octet behind it": LEAF + b"\0",
    "itself behind it": LEAF + LEAF,
    "an octet behind the signature": der(SEQUENCE, TBS, ALGORITHM, SIGNATURE, b"\0"),
    "an element behind the signature": der(SEQUENCE, TBS, ALGORITHM, SIGNATURE, der(0x05)),
    "a length of too many octets": _long(LEAF),
    "a length of indefinite form": b"\x30\x80" + CONTENT + b"\0\0",
    "a length of 127 octets": b"\x30\xff" + bytes(125) + LEAF[2:],
    "a length of 2^64": b"\x30\x89\x01" + bytes(8) + CONTENT,
    "a longer length than there are octets": b"\x30\x82\xff\xff" + CONTENT,
    "a shorter length than there are octets": b"\x30\x82\x01\x00" + CONTENT,
    "a long length of the content": der(SEQUENCE, _long(TBS), ALGORITHM, SIGNATURE),
    "a long length of the content that was signed": resigned(_long(TBS)),
    "a long length of the algorithm": der(SEQUENCE, TBS, _long(ALGORITHM), SIGNATURE),
    "a long length of the signature": der(SEQUENCE, TBS, ALGORITHM, _long(SIGNATURE)),
    "a set": b"\x31" + LEAF[1:],
    "a set inside": der(SEQUENCE, b"\x31" + TBS[1:], ALGORITHM, SIGNATURE),
    "another algorithm": der(SEQUENCE, TBS, bytes.fromhex("300506032b6570"), SIGNATURE),
    "no algorithm": der(SEQUENCE, TBS, SIGNATURE),
    "no signature": der(SEQUENCE, TBS, ALGORITHM),
    "an empty signature": der(SEQUENCE, TBS, ALGORITHM, der(BIT_STRING, b"\0")),
    "a signature without its first octet": der(SEQUENCE, TBS, ALGORITHM, der(BIT_STRING)),
    "a signature with unused bits": der(SEQUENCE, TBS, ALGORITHM, der(BIT_STRING, b"\1" + SIGNATURE[3:])),
    "an octet string for a signature": der(SEQUENCE, TBS, ALGORITHM, b"\x04" + SIGNATURE[1:]),
    "nothing inside": der(SEQUENCE),
    "no serial": renumbered(b""),
    "an empty serial": renumbered(der(INTEGER)),
    "serial zero": renumbered(der(INTEGER, b"\0")),
    "a negative serial": renumbered(der(INTEGER, b"\xff" + NUMBER)),
    "a serial that would be positive without its sign": renumbered(der(INTEGER, b"\x80" + NUMBER[1:])),
    "a serial that begins with a zero": renumbered(der(INTEGER, b"\0" + NUMBER)),
    "a serial of 21 octets": renumbered(der(INTEGER, b"\x01" + bytes(20))),
    "a serial of 64 KiB": renumbered(der(INTEGER, b"\x01" + bytes(65535))),
    "a long length of the serial": renumbered(_long(der(INTEGER, NUMBER))),
    "a serial that is an octet string": renumbered(der(0x04, NUMBER)),
    "PEM": b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
}


@pytest.mark.parametrize("garbled", GARBLED)
@pytest.mark.parametrize("serial", [SERIAL, None], ids=["chosen serial", "any serial"])
def test_what_is_encoded_otherwise_is_refused(garbled: str, serial: int | None) -> None:
    request = replace(REQUEST, serial=serial)
    with pytest.raises(SignerError):
        check_leaf((GARBLED[garbled],), request)


def test_the_garbling_helpers_keep_a_leaf_that_they_do_not_change() -> None:
    """Each of them differs from these only in what it is about."""
    for whole in (der(SEQUENCE, TBS, ALGORITHM, SIGNATURE), resigned(TBS), renumbered(der(INTEGER, NUMBER))):
        assert check_leaf((whole,), REQUEST) == expected(whole, REQUEST)


class Bytes(bytes):
    """Bytes that may say anything of themselves."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


NO_CHAINS: dict[str, Any] = {
    "nothing": None,
    "a number": 1,
    "bytes": LEAF,
    "one octet": b"\x30",
    "a list": [LEAF],
    "a dictionary": {0: LEAF},
    "no certificate": (),
    "the leaf twice": (LEAF, LEAF),
    "a tuple of nothing": (None,),
    "a tuple of a number": (1,),
    "a tuple of text": (LEAF.decode("latin-1"),),
    "a tuple of a tuple": ((LEAF,),),
    "a parsed certificate": (REQUEST.ca.certificate,),
    "bytes that can change": (bytearray(LEAF),),
    "a view of bytes": (memoryview(LEAF),),
    "bytes of another class": (Bytes(LEAF),),
}


@pytest.mark.parametrize("answer", NO_CHAINS)
def test_a_chain_of_another_type_is_refused(answer: str) -> None:
    with pytest.raises(SignerError) as refused:
        check_leaf(NO_CHAINS[answer], REQUEST)
    assert refused.value.message.startswith("The signer returned ")
