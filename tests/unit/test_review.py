"""Parsing SubjectAccessReviews: recorded from real API servers, malformed, and random."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.kubernetes.webhook import review
from clustercert.kubernetes.webhook.review import RequestSender
from clustercert.model.errors import InvalidRequest
from support.kubernetes_messages import credential_id
from support.kubernetes_messages import review as review_bytes

# Recorded: kube-apiserver 1.32.13, POST /authorize?timeout=3s. The fingerprint is made up.
RECORDED = (
    b'{"kind":"SubjectAccessReview","apiVersion":"authorization.k8s.io/v1","metadata":{"creationTimestamp":null},'
    b'"spec":{"resourceAttributes":{"verb":"list","version":"v1","resource":"namespaces"},"user":"bob",'
    b'"groups":["issuer:cluster-admins","issuer:devs","system:authenticated"],'
    b'"extra":{"authentication.kubernetes.io/credential-id":["X509SHA256='
    b'3315a7d0f7e9e3b19e6b2f0f9ad7bd0c4f3f8d1f6c0b7a5e4d3c2b1a09f88088"]}},"status":{"allowed":false}}'
)
FINGERPRINT = bytes(range(32))


def test_a_recorded_review_is_parsed() -> None:
    who = review.parse(RECORDED).identity
    assert who.username == "bob"
    assert who.groups == ("issuer:cluster-admins", "issuer:devs", "system:authenticated")
    assert [each.hex() for each in who.fingerprints] == [
        "3315a7d0f7e9e3b19e6b2f0f9ad7bd0c4f3f8d1f6c0b7a5e4d3c2b1a09f88088"
    ]
    assert not who.malformed


@pytest.mark.parametrize("release", ["1.32", "1.36"])
def test_reviews_of_both_releases_are_parsed(release: str) -> None:
    raw = review_bytes(credential_id(FINGERPRINT), release=release, uid="u-1", unheard_of={"of": 1})
    assert review.parse(raw).identity.fingerprints == (FINGERPRINT,)


def test_a_review_without_certificate_has_no_fingerprint() -> None:
    assert review.parse(review_bytes()).identity.fingerprints == ()
    assert review.parse(review_bytes("JTI=7f3d1a52-6e0c-4b1a-9d0c-1f3f6f0a3c55")).identity == RequestSender(
        "bob", ("clustercert:admins", "system:authenticated"), (), malformed=False, has_other_ids=True
    )
    bare = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {}}
    assert review.parse(json.dumps(bare).encode()).identity == RequestSender("", (), ())


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
def test_an_x509_id_without_fingerprint_is_malformed(value: str) -> None:
    who = review.parse(review_bytes(credential_id(FINGERPRINT), value)).identity
    assert who.malformed
    assert who.fingerprints == (FINGERPRINT,)


def test_duplicate_ids_are_merged() -> None:
    who = review.parse(review_bytes(*[credential_id(FINGERPRINT)] * 2)).identity
    assert who.fingerprints == (FINGERPRINT,)
    assert not who.malformed


@pytest.mark.parametrize("count", [16, 17, 5000])
def test_more_than_sixteen_ids_are_malformed(count: int) -> None:
    who = review.parse(review_bytes(*[f"X509SHA256={n:064x}" for n in range(count)])).identity
    assert [int.from_bytes(each) for each in who.fingerprints] == list(range(16))
    assert who.malformed == (count > 16)
    assert who.has_certificate
    assert not who.has_other_ids


def test_ids_of_another_kind_are_reported_separately() -> None:
    who = review.parse(review_bytes("JTI=1", credential_id(FINGERPRINT), *["JTI=2"] * 20)).identity
    assert (who.fingerprints, who.malformed, who.has_other_ids) == ((FINGERPRINT,), False, True)
    assert not review.parse(review_bytes("JTI=1")).identity.has_certificate


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"{",
        RECORDED.replace(b'"user":"bob"', b'"user":"bob","x":NaN'),
        RECORDED.replace(b'"user":"bob"', b'"user":"b\xffb"'),
        RECORDED.replace(b'"user":"bob"', b'"user":"b\nb"'),
        b"\xef\xbb\xbf" + RECORDED,
        RECORDED.decode().encode("utf-16"),
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
def test_other_documents_are_rejected(raw: bytes) -> None:
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
def test_any_spec_is_parsed_or_rejected(spec: dict[str, object], ids: list[str]) -> None:
    document = json.loads(review_bytes(*ids))
    document["spec"] |= spec
    try:
        who = review.parse(json.dumps(document).encode()).identity
    except InvalidRequest:
        return
    assert all(len(each) == 32 for each in who.fingerprints)
    # Each fingerprint is in the document unchanged.
    assert all(credential_id(each) in json.dumps(document) for each in who.fingerprints)


def test_an_answer_is_never_allowed_and_denied() -> None:
    for version in (review.V1, review.V1BETA1):
        assert json.loads(review.NO_OPINION[version]) == {
            "apiVersion": version,
            "kind": "SubjectAccessReview",
            "status": {"allowed": False},
        }
        assert json.loads(review.denied("because", version)) == {
            "apiVersion": version,
            "kind": "SubjectAccessReview",
            "status": {"allowed": False, "denied": True, "reason": "because"},
        }


V1BETA1 = RECORDED.replace(b"authorization.k8s.io/v1", b"authorization.k8s.io/v1beta1").replace(
    b'"groups":[', b'"group":['
)


def test_a_review_of_v1beta1_has_its_groups_in_another_field() -> None:
    asked = review.parse(V1BETA1)
    assert asked.api_version == review.V1BETA1
    assert asked.identity == review.parse(RECORDED).identity
    with pytest.raises(InvalidRequest):
        review.parse(RECORDED.replace(b'"groups":[', b'"group":['))


@pytest.mark.parametrize("length", [150, 100_000])
def test_the_version_is_known_from_the_beginning(length: int) -> None:
    assert review.version_in(V1BETA1[:length]) == review.V1BETA1
    said_by_a_client = RECORDED.replace(b'"namespaces"', b'"authorization.k8s.io/v1beta1"')
    assert review.version_in(said_by_a_client[:length]) == review.V1


@pytest.mark.parametrize(
    ("ids", "groups", "denied"),
    [
        ((), ("clustercert:admins",), False),
        (("JTI=1",), ("system:nodes",), False),
        ((), ("clustercert:credential:x",), True),
        ((credential_id(FINGERPRINT),), (), True),
        (("X509SHA256=x",), (), True),
    ],
)
def test_only_client_certificates_may_be_denied(
    ids: tuple[str, ...], groups: tuple[str, ...], denied: bool
) -> None:
    assert review.parse(review_bytes(*ids, groups=groups)).identity.may_be_denied is denied
