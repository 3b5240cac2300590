"""SubjectAccessReviews as real API servers write them, and whatever else may come."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.errors import InvalidRequest
from clustercert.webhook import review
from clustercert.webhook.review import Identity
from kubernetes_bytes import credential_id
from kubernetes_bytes import review as review_bytes

# Recorded: kube-apiserver 1.32.13, POST /authorize?timeout=3s. The fingerprint is made up.
RECORDED = (
    b'{"kind":"SubjectAccessReview","apiVersion":"authorization.k8s.io/v1","metadata":{"creationTimestamp":null},'
    b'"spec":{"resourceAttributes":{"verb":"list","version":"v1","resource":"namespaces"},"user":"bob",'
    b'"groups":["issuer:cluster-admins","issuer:devs","system:authenticated"],'
    b'"extra":{"authentication.kubernetes.io/credential-id":["X509SHA256='
    b'3315a7d0f7e9e3b19e6b2f0f9ad7bd0c4f3f8d1f6c0b7a5e4d3c2b1a09f88088"]}},"status":{"allowed":false}}'
)
FINGERPRINT = bytes(range(32))


def test_the_recorded_bytes_are_understood() -> None:
    who = review.parse(RECORDED)
    assert who.username == "bob"
    assert who.groups == ("issuer:cluster-admins", "issuer:devs", "system:authenticated")
    assert [each.hex() for each in who.fingerprints] == [
        "3315a7d0f7e9e3b19e6b2f0f9ad7bd0c4f3f8d1f6c0b7a5e4d3c2b1a09f88088"
    ]
    assert not who.malformed


@pytest.mark.parametrize("release", ["1.32", "1.36"])
def test_both_releases_forms_are_understood(release: str) -> None:
    raw = review_bytes(credential_id(FINGERPRINT), release=release, uid="u-1", unheard_of={"of": 1})
    assert review.parse(raw).fingerprints == (FINGERPRINT,)


def test_what_says_nothing_of_a_certificate_has_no_fingerprint() -> None:
    assert review.parse(review_bytes()).fingerprints == ()
    assert review.parse(review_bytes("JTI=7f3d1a52-6e0c-4b1a-9d0c-1f3f6f0a3c55")) == Identity(
        "bob", ("clustercert:admins", "system:authenticated"), (), malformed=False, has_other_ids=True
    )
    bare = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {}}
    assert review.parse(json.dumps(bare).encode()) == Identity("", (), ())


@pytest.mark.parametrize(
    "value",
    [
        "X509SHA256=",
        "X509SHA256=" + "A" * 64,
        "X509SHA256=" + "a" * 63,
        "X509SHA256=" + "a" * 65,
        "X509SHA256=" + "a" * 64 + "\n",
        "X509SHA256=" + "٣" * 64,
    ],
)
def test_an_x509_id_that_is_no_fingerprint_is_malformed(value: str) -> None:
    who = review.parse(review_bytes(credential_id(FINGERPRINT), value))
    assert who.malformed
    assert who.fingerprints == (FINGERPRINT,)


def test_the_same_id_twice_is_looked_at_once() -> None:
    who = review.parse(review_bytes(*[credential_id(FINGERPRINT)] * 2))
    assert who.fingerprints == (FINGERPRINT,)
    assert not who.malformed


@pytest.mark.parametrize("count", [16, 17, 5000])
def test_more_ids_than_an_api_server_would_say_are_malformed(count: int) -> None:
    who = review.parse(review_bytes(*[f"X509SHA256={n:064x}" for n in range(count)]))
    assert [int.from_bytes(each) for each in who.fingerprints] == list(range(16))
    assert who.malformed == (count > 16)
    assert who.has_certificate
    assert not who.has_other_ids


def test_ids_of_another_kind_are_no_certificates_and_are_told() -> None:
    who = review.parse(review_bytes("JTI=1", credential_id(FINGERPRINT), *["JTI=2"] * 20))
    assert (who.fingerprints, who.malformed, who.has_other_ids) == ((FINGERPRINT,), False, True)
    assert not review.parse(review_bytes("JTI=1")).has_certificate


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b"{",
        RECORDED.replace(b"authorization.k8s.io/v1", b"authorization.k8s.io/v1beta1"),
        RECORDED.replace(b'"SubjectAccessReview"', b'"SelfSubjectAccessReview"'),
        RECORDED.replace(b'"spec":{', b'"spec":[],"other":{'),
        RECORDED.replace(b'"user":"bob"', b'"user":1'),
        RECORDED.replace(b'"groups":[', b'"groups":[3,'),
        RECORDED.replace(b'"groups":[', b'"groups":"g","others":['),
        RECORDED.replace(b'"extra":{', b'"extra":[],"others":{'),
        RECORDED.replace(b'["X509', b'[["X509"],"'),
    ],
)
def test_anything_else_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        review.parse(raw)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["user", "groups", "extra", "uid"]), json_values, max_size=4),
    st.lists(st.text(max_size=80), max_size=4),
)
def test_any_spec_is_an_identity_or_refused(spec: dict[str, object], ids: list[str]) -> None:
    document = json.loads(review_bytes(*ids))
    document["spec"] |= spec
    try:
        who = review.parse(json.dumps(document).encode())
    except InvalidRequest:
        return
    assert all(len(each) == 32 for each in who.fingerprints)
    # Nothing is made up: each fingerprint stands in the document as it is.
    assert all(credential_id(each) in json.dumps(document) for each in who.fingerprints)


def test_an_answer_is_never_allowed_and_denied() -> None:
    assert json.loads(review.NO_OPINION) == {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "status": {"allowed": False},
    }
    assert json.loads(review.denied("because"))["status"] == {
        "allowed": False,
        "denied": True,
        "reason": "because",
    }
