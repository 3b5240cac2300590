"""The parser of audit events, compared with a plain JSON parser, and with hostile values of clients."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.kubernetes.webhook.audit_events import (
    MAX_USER,
    Allowed,
    Approval,
    AuditedRequest,
    EventListParser,
    EventParser,
)
from clustercert.kubernetes.webhook.json_tokens import TEXT_READ, IncompleteJson
from clustercert.kubernetes.webhook.review import parse_identity
from clustercert.model import credential_groups
from clustercert.model.errors import InvalidRequest
from support import programs
from support.kubernetes_messages import audit_event, credential_id, event_list

FINGERPRINT = bytes(range(32))
MEBIBYTE = 1024 * 1024


def pieces(raw: bytes, size: int) -> Iterator[bytes]:
    return (raw[start : start + size] for start in range(0, len(raw), size))


def parsed(raw: bytes, size: int = 256 * 1024) -> EventListParser:
    parser = EventListParser()
    for piece in pieces(raw, size):
        parser.feed(piece)
    parser.close()
    return parser


def observed(raw: bytes, size: int = 256 * 1024) -> list[AuditedRequest]:
    return parsed(raw, size).take_requests()


def with_member(name: str, value: bytes) -> bytes:
    """An event with a certificate and one more member, which is given as JSON."""
    text = json.dumps(audit_event(credential_id(FINGERPRINT)) | {name: "HERE"}).encode()
    return text.replace(b'"HERE"', value)


def in_list(*events: bytes) -> bytes:
    return event_list().replace(b"[]", b"[" + b",".join(events) + b"]")


def test_only_requests_with_certificates_are_returned() -> None:
    raw = event_list(audit_event(), audit_event("JTI=x"), audit_event(credential_id(FINGERPRINT)))
    parser = parsed(raw)
    (event,) = parser.take_requests()
    assert event.identity.fingerprints == (FINGERPRINT,)
    assert event.at == datetime(2026, 3, 14, 15, 9, 26, 535897, tzinfo=UTC)
    assert (parser.readable, parser.unreadable, parser.take_requests()) == (3, 0, [])
    assert observed(event_list()) == []
    assert observed(b'{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":null}') == []
    assert observed(b'{"kind":"EventList","apiVersion":"audit.k8s.io/v1"}') == []


def test_the_certificate_belongs_to_the_real_user_under_impersonation() -> None:
    event = audit_event(credential_id(FINGERPRINT), user="alice")
    event["impersonatedUser"] = audit_event(credential_id(bytes(32)), user="root")["user"]
    (seen,) = observed(event_list(event))
    assert (seen.identity.username, seen.identity.fingerprints) == ("alice", (FINGERPRINT,))


def test_kind_and_version_may_follow_the_items() -> None:
    document = json.loads(event_list(audit_event(credential_id(FINGERPRINT))))
    assert len(observed(json.dumps(dict(reversed(document.items()))).encode())) == 1
    parser = EventListParser()
    parser.feed(json.dumps({"items": document["items"], "kind": "List"}).encode())
    with pytest.raises(InvalidRequest, match="Send an EventList"):
        parser.close()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"no json",
        b"3",
        b"[]",
        b"null",
        b'"' + b"x" * 1000,
        event_list() + b"x",
        event_list().replace(b"audit.k8s.io/v1", b"audit.k8s.io/v1beta1"),
        event_list().replace(b"EventList", b"Event"),
        b'{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":{}}',
        b'{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":"x"}',
        b'{"kind":"EventList","items":[]}',
        in_list(b"[" * 30_000 + b"]" * 30_000),
        in_list(b"{}", b""),
        in_list(b"NaN"),
        in_list(b"01"),
        in_list(b'"\\x"'),
        in_list(b'"a\nb"'),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 256 * 1024])
def test_other_documents_are_rejected(raw: bytes, size: int) -> None:
    with pytest.raises(InvalidRequest):
        parsed(raw, size)


def test_another_kind_is_rejected_before_its_items() -> None:
    parser = EventListParser()
    with pytest.raises(InvalidRequest, match="Send an EventList"):
        parser.feed(b'{"kind":"List","apiVersion":"audit.k8s.io/v1","items":[')


@pytest.mark.parametrize(
    "bad",
    [
        3,
        None,
        [],
        {},
        {"user": 3},
        audit_event() | {"user": None},
        audit_event() | {"user": {"username": 3}},
        audit_event() | {"user": {"groups": ["devs", 3]}},
        audit_event() | {"user": {"groups": ["x" * (MAX_USER // 20)] * 20}},
        audit_event() | {"user": {"groups": [[]] * 20_000}},
        audit_event(at="yesterday"),
        audit_event(at="2026-03-14T15:09:26"),
        audit_event(at="0001-01-01T00:00:00Z"),
        audit_event(at="9999-12-31T23:59:59-10:00"),
        audit_event(at=3),  # type: ignore[arg-type] # as somebody may write it
        audit_event(at={"a": 1}),  # type: ignore[arg-type] # the same
    ],
)
def test_an_unreadable_event_does_not_hide_others(bad: Any) -> None:
    good = audit_event(credential_id(FINGERPRINT))
    parser = parsed(event_list(good, bad, good), 1000)
    assert (len(parser.take_requests()), parser.readable, parser.unreadable) == (2, 2, 1)


@pytest.mark.parametrize(
    "value",
    [
        b"1" * 5000,
        b"-" + b"9" * 100_000,
        b"1e99999999999999999999999",
        b"0." + b"3" * 100_000,
        rb'"\udc00"',
        rb'"\ud800"',
        rb'"\ud800\u0041\ud800"',
        rb'"\\ud83d\udc00"',
        rb'"\\\\\\\\\"\\"',
        b'"\xff\xfe\xed\xa0\x80\xc0\x80"',
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"items.item.user":{"username":"eve"},"":{"user":{}},"user":1}',
        b'{"items":[{"user":{"username":"eve"}}],"kind":"List","requestReceivedTimestamp":0}',
        b'"' + rb"\u0026" * 200_000 + b'"',
        b'"' + rb"\ud83d\ude00" * 50_000 + b'"',
        b'"' + rb"\\" * 300_001 + b'"',
        b'"' + rb"\"" * 300_001 + b'"',
        b'"' + "é€😀".encode() * 100_000 + b'"',
        b'"' + b"7" * 1_000_000 + b'"',
    ],
)
@pytest.mark.parametrize("size", [1021, 256 * 1024])
def test_no_client_value_hides_an_event(value: bytes, size: int) -> None:
    name = b"request.user" if value[:1] == b"{" else b"requestObject"
    event = with_member(name.decode(), value)
    parser = parsed(in_list(event, event), size)
    seen = parser.take_requests()
    assert [each.identity.fingerprints for each in seen] == [(FINGERPRINT,)] * 2
    assert parser.unreadable == 0


def test_the_last_of_duplicate_members_counts() -> None:
    event = with_member("user", b'{"username":"first"},"user":{"username":"x","username":"last"}')
    parser = parsed(in_list(event.replace(b"X509SHA256", b"JTI")))
    assert (parser.readable, parser.unreadable) == (1, 0)
    twice = event_list().replace(b'"kind"', b'"kind": "List", "kind"')
    assert observed(twice) == []


def test_events_before_a_cut_are_read() -> None:
    events = [audit_event(credential_id(bytes([n]) * 32), user=f"u{n}é😀") for n in range(3)]
    raw = json.dumps(json.loads(event_list(*events)), ensure_ascii=False).encode()
    ends = [raw.index(json.dumps(each, ensure_ascii=False).encode()) for each in events]
    ends = [
        at + len(json.dumps(each, ensure_ascii=False).encode()) for at, each in zip(ends, events, strict=True)
    ]
    for cut in range(len(raw)):
        parser = EventListParser()
        parser.feed(raw[:cut])
        assert len(parser.take_requests()) == sum(end <= cut for end in ends), cut
        with pytest.raises(IncompleteJson):
            parser.close()


def test_events_before_an_error_are_read() -> None:
    parser = EventListParser()
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        parser.feed(in_list(with_member("a", b"1"), b"oops"))
    assert len(parser.take_requests()) == 1


FILLERS = (b"x", b"7", rb"\u0026", rb"\ud83d", b"\\\\", b"\xff", b" ")


def test_endless_strings_and_a_large_batch_need_constant_memory() -> None:
    """In one process without other tests, whose memory nothing else changes."""
    done = programs.run("parser_memory", *(filler.hex() for filler in FILLERS), "batch")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # Covers pieces of 256 KiB, their rewritten copies, and the kept part of the string.
    assert all(each.pop("peak") < 8 * MEBIBYTE for each in found)
    endless = {"requests": 1, "readable": 1, "unreadable": 1}
    assert found == [endless] * len(FILLERS) + [{"requests": 0, "readable": 100, "unreadable": 0}]


def test_a_user_of_maximum_length_is_read_completely() -> None:
    groups = [f"group-{n:06}" for n in range(MAX_USER // 200)]
    name = "n" * (TEXT_READ - 1)
    (seen,) = observed(event_list(audit_event(credential_id(FINGERPRINT), user=name, groups=groups)), 1000)
    assert seen.identity.username == name
    assert seen.identity.groups == (*groups, "system:authenticated")


# --- Comparison with a plain JSON parser ---

_SURROGATE = re.compile("[\ud800-\udfff]")


def plainly_read(raw: bytes) -> tuple[list[AuditedRequest], int]:
    """The expected requests, and the expected number of unreadable events."""
    document = json.loads(_replaced(json.loads(raw.decode(errors="replace"))))
    found, unreadable = [], 0
    for item in document["items"] or []:
        try:
            user = item.get("user", {})
            identity = parse_identity(user.get("username"), user.get("groups"), user.get("extra"))
            at = datetime.fromisoformat(item["requestReceivedTimestamp"]).astimezone(UTC)
        except (AttributeError, InvalidRequest, KeyError, TypeError, ValueError):
            unreadable += 1
            continue
        if identity.has_certificate or credential_groups(identity.groups):
            found.append(AuditedRequest(identity, at))
    return found, unreadable


def _replaced(document: object) -> str:
    return _SURROGATE.sub("\ufffd", json.dumps(document, ensure_ascii=False))


texts = st.text(st.characters(categories=["L", "N", "P", "S", "Zs", "Cc", "Cs"]), max_size=6)
names = st.sampled_from(["user", "items", "kind", "a.b", "items.item", "username", ""]) | texts
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
groups = st.lists(
    st.sampled_from(["devs", "system:masters", "clustercert:credential:" + "a" * 40]) | texts, max_size=3
)
ids = st.lists(st.sampled_from([credential_id(FINGERPRINT), credential_id("zz"), "JTI=x"]), max_size=2)
extra = st.fixed_dictionaries(
    {}, optional={"authentication.kubernetes.io/credential-id": ids, "a.b": json_values}
)
users = st.fixed_dictionaries(
    {}, optional={"username": texts, "groups": groups, "extra": extra, "uid": json_values}
)
times = st.datetimes(min_value=datetime(2015, 1, 1), max_value=datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 # as hypothesis asks
events = st.dictionaries(names, json_values, max_size=3).flatmap(
    lambda more: st.fixed_dictionaries(
        {"user": users | json_values, "requestReceivedTimestamp": times.map(datetime.isoformat) | json_values}
    ).map(lambda event: more | event)
)
documents = st.fixed_dictionaries(
    {
        "kind": st.just("EventList"),
        "metadata": json_values,
        "apiVersion": st.just("audit.k8s.io/v1"),
        "items": st.lists(events | json_values, max_size=4),
    }
).flatmap(lambda document: st.permutations(list(document.items())).map(dict))


@given(documents, st.booleans(), st.sampled_from([None, 1]), st.integers(min_value=1, max_value=40))
def test_the_parser_agrees_with_a_plain_json_parser(
    document: dict[str, Any], ascii_only: bool, indent: int | None, size: int
) -> None:
    raw = json.dumps(document, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    parser = parsed(raw, size)
    assert (parser.take_requests(), parser.unreadable) == plainly_read(raw)


@given(
    st.binary(max_size=60), st.integers(min_value=0, max_value=200), st.integers(min_value=1, max_value=40)
)
def test_any_bytes_are_parsed_or_rejected(noise: bytes, at: int, size: int) -> None:
    raw = event_list(audit_event(credential_id(FINGERPRINT)))
    # The parser accepts two more space characters between tokens than JSON allows. Harmless, so not tested.
    damaged = raw[:at] + noise.translate(None, b"\x0b\x0c") + raw[at:]
    try:
        json.loads(damaged.decode(errors="replace"), parse_constant=int)
    except ValueError:
        with pytest.raises(InvalidRequest):
            parsed(damaged, size)
        return
    try:
        parsed(damaged, size)
    except InvalidRequest as refusal:
        assert "JSON" not in refusal.message  # noqa: PT017 # what is JSON is refused for what it says


# --- Lines of a log ---


def line(raw: bytes, size: int = 256 * 1024) -> AuditedRequest | None:
    parser = EventParser()
    for piece in pieces(raw, size):
        parser.feed(piece)
    return parser.close()


def test_a_line_of_an_audit_log_is_parsed() -> None:
    seen = line(json.dumps(audit_event(credential_id(FINGERPRINT))).encode(), 10)
    assert seen is not None
    assert seen.identity.fingerprints == (FINGERPRINT,)
    assert line(json.dumps(audit_event()).encode()) is None


@pytest.mark.parametrize("raw", [b"", b"{}", event_list(), b'{"kind":"Event"}', b"{\n", b"3", b"[]"])
def test_other_lines_are_rejected(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        line(raw)


def with_members(**members: object) -> AuditedRequest:
    """The request of an event with other members."""
    (request,) = observed(event_list(audit_event(credential_id(FINGERPRINT)) | members))
    return request


@pytest.mark.parametrize(
    ("reference", "cached"),
    [
        ({"resource": "secrets", "apiVersion": "v1"}, 0),
        ({"resource": "deployments", "apiGroup": "apps", "apiVersion": "v1"}, 0),
        ({"resource": "selfsubjectreviews", "apiGroup": "authentication.k8s.io", "apiVersion": "v1"}, 0),
        ({"resource": "pods", "apiGroup": "metrics.k8s.io", "apiVersion": "v1beta1"}, 10),
        (None, 10),
    ],
)
def test_an_allowed_request_may_be_decided_earlier_if_another_server_could_answer_it(
    reference: object, cached: int
) -> None:
    request = with_members(objectRef=reference)
    assert request.allowed == Allowed(request.at - timedelta(seconds=cached), request.at)


@pytest.mark.parametrize(
    "annotations",
    [
        {"authorization.k8s.io/decision": "forbid"},
        {},
        None,
        "allow",
        {"authorization.k8s.io/decision": ["allow"]},
    ],
)
def test_a_request_without_the_decision_allow_was_not_allowed(annotations: object) -> None:
    assert with_members(annotations=annotations).allowed is None


APPROVAL = {
    "resource": "certificatesigningrequests",
    "apiGroup": "certificates.k8s.io",
    "apiVersion": "v1",
    "name": "ghost",
    "subresource": "approval",
}
CLIENT = "kubernetes.io/kube-apiserver-client"


def signing_request(signer: object = CLIENT, *conditions: object) -> dict[str, object]:
    status = {"conditions": conditions, "certificate": "LS0t"}
    return {"kind": "CertificateSigningRequest", "spec": {"signerName": signer}, "status": status}


@pytest.mark.parametrize(
    ("members", "approval"),
    [
        ({"responseObject": signing_request(CLIENT, {"type": "Approved"})}, Approval("ghost", CLIENT)),
        (
            {"responseObject": signing_request(f"{CLIENT}-kubelet", {"type": "Other"}, {"type": "Approved"})},
            Approval("ghost", f"{CLIENT}-kubelet"),
        ),
        (
            {"responseObject": signing_request(CLIENT, *[{"type": "Other"}] * 1000, {"type": "Approved"})},
            Approval("ghost", CLIENT),
        ),
        # At the level Metadata.
        ({}, Approval("ghost", None)),
        ({"responseObject": signing_request("kubernetes.io/kubelet-serving", {"type": "Approved"})}, None),
        ({"responseObject": signing_request("example.com/own", {"type": "Approved"})}, None),
        ({"responseObject": signing_request(CLIENT, {"type": "Denied"})}, None),
        ({"responseObject": signing_request(CLIENT)}, None),
        ({"responseObject": {"kind": "Status", "status": "Failure"}}, None),
        ({"responseObject": {"spec": [], "status": {"conditions": {"type": "Approved"}}}}, None),
        ({"responseStatus": {"code": 403}}, None),
        ({"responseStatus": None}, None),
        ({"annotations": {"authorization.k8s.io/decision": "forbid"}}, None),
        ({"objectRef": APPROVAL | {"subresource": "status"}}, None),
        ({"objectRef": APPROVAL | {"apiGroup": "example.com"}}, None),
    ],
)
def test_approvals_of_client_certificates_are_found(
    members: dict[str, object], approval: Approval | None
) -> None:
    assert with_members(**{"objectRef": APPROVAL, **members}).approval == approval
