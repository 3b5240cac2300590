"""The admission policy that limits which certificates the service's account can approve in a cluster."""

import base64
import re
import secrets
import string
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import pytest
from cel_expr_python import cel as google
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from clustercert.issuance.signers.certificate_requests import certificate_request_pem
from clustercert.kubernetes.setup.signer_access import signer_access, signer_user
from clustercert.model import ClientCA, KeyType
from clustercert.model.kubernetes import CLIENT_SIGNER
from clustercert.pki.keys import new_key
from clustercert.pki.leaf import new_signing_request
from support.apiserver.expressions import holds, value
from support.asn1 import BIT_STRING, SEQUENCE, der, pem
from support.certificate_authority import Authority
from support.samples import CA_ID, CLUSTER_ID, grant

KEYS = {key_type: new_key(key_type) for key_type in get_args(KeyType)}
CA = ClientCA(
    id=CA_ID, cluster_id=CLUSTER_ID, certificate=Authority("kubernetes").certificate, sealed_key=None
)
[POLICY] = [each for each in signer_access() if each["kind"] == "ValidatingAdmissionPolicy"]
SPEC: Any = POLICY["spec"]
VARIABLES: dict[str, str] = {each["name"]: each["expression"] for each in SPEC["variables"]}
NAMED = {name: value(VARIABLES[name], {}) for name in ("alphabet", "characters")}

SET, OID, UTF8, PRINTABLE, IA5, BMP, TELETEX = 0x31, 0x06, 0x0C, 0x13, 0x16, 0x1E, 0x14
ORGANIZATION, COMMON_NAME = bytes.fromhex("55040a"), bytes.fromhex("550403")
KEY = KEYS["ec-p256"]
CREDENTIAL = f"clustercert:credential:{'0a' * 20}"


def problems(request_pem: bytes, username: str = signer_user(), signer: str = CLIENT_SIGNER) -> list[str]:
    """The messages of the policy about an approval of this request by the signer's account."""
    spec = {"request": base64.b64encode(request_pem).decode(), "username": username, "signerName": signer}
    known: dict[str, object] = {
        "oldObject": {"spec": spec},
        "request": {"userInfo": {"username": signer_user()}},
    }
    assert all(holds(each["expression"], known) for each in SPEC["matchConditions"])
    # Decoded in Python, which is faster. A test below compares both.
    named: dict[str, object] = {"pem": decoded(spec["request"])}
    for name, expression in VARIABLES.items():
        if name not in named:
            named[name] = value(expression, {**known, "variables": named})
    known["variables"] = named
    found = [each["message"] for each in SPEC["validations"] if not holds(each["expression"], known)]
    assert found == in_googles_cel(named, found)
    return found


def decoded(base64_text: str) -> str:
    """What the policy compares with its patterns: the characters that PEM can have, and `?` for all others."""
    octets = base64.b64decode(base64_text.replace("=", "A"))
    return re.sub(r"[^A-Za-z0-9+/=\- \n]", "?", octets.decode("latin-1"))


@given(st.one_of(st.binary(max_size=100), st.text(string.printable, max_size=100).map(str.encode)))
@settings(deadline=None)
def test_the_policy_decodes_base64(content: bytes) -> None:
    text = base64.b64encode(content).decode()
    found = value(VARIABLES["pem"], {"variables": NAMED, "oldObject": {"spec": {"request": text}}})
    assert found == decoded(text)


def test_the_policy_reads_the_pem_as_it_was_sent() -> None:
    sent = request(FIRST, CN)
    text = base64.b64encode(sent).decode()
    found = value(VARIABLES["pem"], {"variables": NAMED, "oldObject": {"spec": {"request": text}}})
    assert found == decoded(text)
    assert decoded(text).rstrip("?") == sent.decode()


REFERENCE = google.NewEnv(variables={"variables": google.Type.Map(google.Type.STRING, google.Type.DYN)})
PATTERNS = {
    each["message"]: REFERENCE.compile(each["expression"])
    for each in SPEC["validations"]
    if "matches" in each["expression"]
}


def in_googles_cel(named: dict[str, object], found: Sequence[str]) -> list[str]:
    """The same, where the patterns are those of RE2, as in kube-apiserver."""
    others = [each for each in found if each not in PATTERNS]
    failed = [
        message
        for message, program in PATTERNS.items()
        if not program.eval(data={"variables": named}).value()
    ]
    return [each["message"] for each in SPEC["validations"] if each["message"] in (*others, *failed)]


def attribute(oid: bytes, text: str, tag: int = UTF8) -> bytes:
    content = text.encode("utf-16-be" if tag == BMP else "utf-8")
    return der(SEQUENCE, der(OID, oid), der(tag, content))


def request(*rdns: Sequence[bytes], attributes: bytes = b"") -> bytes:
    """A CSR with these RDNs, PEM as the service sends it."""
    assert isinstance(KEY, ec.EllipticCurvePrivateKey)
    spki = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    subject = der(SEQUENCE, *(der(SET, *each) for each in rdns))
    info = der(SEQUENCE, b"\x02\x01\x00", subject, spki, der(0xA0, attributes))
    signature = KEY.sign(info, ec.ECDSA(hashes.SHA256()))
    ecdsa = bytes.fromhex("300a06082a8648ce3d040302")
    return certificate_request_pem(der(SEQUENCE, info, ecdsa, der(BIT_STRING, b"\0" + signature)))


FIRST = (attribute(ORGANIZATION, CREDENTIAL),)
CN = (attribute(COMMON_NAME, "alice"),)
NO_GROUP = ["The first group of the requested certificate must be a credential group of clustercert."]
SYSTEM_NAME = ["The requested certificate may not have a user or a group that begins with system:"]


@pytest.mark.parametrize("key_type", KEYS)
@pytest.mark.parametrize(
    "groups", [(), ("a",), ("ecosystem:a", "systems"), tuple(f"group-{n}" for n in range(40))]
)
def test_what_the_service_requests_is_allowed(key_type: KeyType, groups: tuple[str, ...]) -> None:
    key = KEYS[key_type]
    made = new_signing_request(
        grant(groups=groups),
        key.public_key(),
        CA,
        takes_serial=False,
        profile="kubernetes",
        private_key=key,
    )
    assert problems(certificate_request_pem(made.csr or b"")) == []


@given(
    username=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=16),
    groups=st.lists(
        st.text("abz:-_ éß", min_size=1, max_size=16).filter(lambda text: not text.startswith("system:")),
        max_size=5,
        unique=True,
    ),
)
@settings(max_examples=50, deadline=None)
def test_any_names_that_the_service_requests_are_allowed(username: str, groups: list[str]) -> None:
    made = new_signing_request(
        replace(grant(username, tuple(groups))),
        KEY.public_key(),
        CA,
        takes_serial=False,
        profile="kubernetes",
        private_key=KEY,
    )
    assert problems(certificate_request_pem(made.csr or b"")) == []


def test_the_handmade_request_is_one_that_kubernetes_reads() -> None:
    made = request(FIRST, CN)
    assert x509.load_pem_x509_csr(made).is_signature_valid
    assert problems(made) == []


@pytest.mark.parametrize("tag", [UTF8, PRINTABLE, IA5, BMP, TELETEX])
@pytest.mark.parametrize("oid", [ORGANIZATION, COMMON_NAME])
@pytest.mark.parametrize(
    "name", ["system:nodes", "system:", "system:kube-controller-manager", "system:" + "x" * 300]
)
def test_system_users_and_groups_are_refused_in_every_encoding(tag: int, oid: bytes, name: str) -> None:
    # With names of three lengths before it, the name is at each offset in base64.
    for before in ("a", "ab", "abc"):
        made = request(FIRST, (attribute(ORGANIZATION, before),), (attribute(oid, name, tag),), CN)
        assert problems(made) == SYSTEM_NAME
        assert (
            problems(request(FIRST, (attribute(ORGANIZATION, before), attribute(oid, name, tag))))
            == SYSTEM_NAME
        )


def test_a_request_without_the_credential_group_at_its_beginning_is_refused() -> None:
    admins = (attribute(ORGANIZATION, "clustercert:admins"),)
    assert problems(request(CN)) == NO_GROUP
    assert problems(request(admins, CN)) == NO_GROUP
    assert problems(request(admins, FIRST, CN)) == NO_GROUP
    assert problems(request((*FIRST, *admins), CN)) == NO_GROUP
    assert problems(request((attribute(COMMON_NAME, CREDENTIAL),), admins)) == NO_GROUP
    assert problems(request((attribute(ORGANIZATION, CREDENTIAL, PRINTABLE),), admins)) == NO_GROUP
    assert problems(request((attribute(ORGANIZATION, CREDENTIAL[:-1]),), CN)) == NO_GROUP


def test_the_credential_group_elsewhere_in_the_request_does_not_count() -> None:
    """Kubernetes drops all attributes of a request but the alternative names."""
    hidden = der(SEQUENCE, der(OID, bytes.fromhex("2a03")), der(SET, der(SEQUENCE, der(SET, *FIRST))))
    assert problems(request((attribute(ORGANIZATION, "a"),), CN, attributes=hidden)) == NO_GROUP
    # In front, as a version that is none.
    whole = x509.load_pem_x509_csr(request(CN)).public_bytes(Encoding.DER)
    moved = certificate_request_pem(whole.replace(b"\x02\x01\x00", der(SEQUENCE, der(SET, *FIRST)), 1))
    assert problems(moved) == NO_GROUP


@pytest.mark.parametrize(
    "change",
    [
        lambda block: b"first\n" + block,
        lambda block: block + block,
        lambda block: block.replace(b"REQUEST-----\n", b"REQUEST-----\nA: b\n\n", 1),
        lambda block: block.replace(b"\n", b"\r\n"),
        lambda block: block.rstrip(b"\n"),
        lambda block: block.replace(b"CERTIFICATE REQUEST", b"NEW CERTIFICATE REQUEST"),
        lambda block: block.replace(b"-----END", b" \n-----END"),
    ],
)
def test_another_form_of_pem_is_refused(change: Any) -> None:
    assert "The request must be one PEM block without other text." in problems(change(request(FIRST, CN)))


def test_requests_of_others_and_to_other_signers_are_refused() -> None:
    made = request(FIRST, CN)
    assert problems(made, username="system:serviceaccount:clustercert:other") == [
        "clustercert may approve only requests that its own account created."
    ]
    assert problems(made, signer="kubernetes.io/kubelet-serving") == [
        f"clustercert may approve only requests to {CLIENT_SIGNER}."
    ]


def test_random_keys_and_signatures_are_never_taken_for_a_name() -> None:
    for _ in range(100):
        noise = (attribute(ORGANIZATION, secrets.token_hex(20)),)
        assert problems(request(FIRST, noise, CN)) == []


def test_the_pem_is_that_of_the_field() -> None:
    whole = x509.load_pem_x509_csr(request(FIRST, CN)).public_bytes(Encoding.DER)
    assert certificate_request_pem(whole) == x509.load_der_x509_csr(whole).public_bytes(Encoding.PEM)
    assert pem("CERTIFICATE REQUEST", whole).splitlines()[0] == "-----BEGIN CERTIFICATE REQUEST-----"
