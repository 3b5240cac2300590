import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustercert.authn.access_keys import MAX_ADDRESS, WRONG_SIGNATURES, AccessKeyAuthenticator, SigningKey
from clustercert.authn.credentials import UnverifiedCredential
from clustercert.model import Caller, Domain, Origin, UnverifiedRequest, User
from clustercert.model.errors import Unauthenticated, UnsignedBody
from clustercert.pki.request_signature import (
    TIMESTAMP_FORMAT,
    Scheme,
    SignatureCredential,
    SignedParts,
    payload_hash,
    sign,
)

NOW = datetime(2026, 1, 15, 10, 30, tzinfo=UTC)
ORIGIN = Origin("192.0.2.1", "0" * 32)
ALICE = User("7116d09f88fa41908676fdd4b039e95b", "alice", Domain("d" * 32, "acme"))
PERMANENT = SigningKey("AKEXAMPLE00000000001", ALICE.id, b"SKEXAMPLE000000000000000000000000000001")
TEMPORARY = replace(
    PERMANENT,
    security_token_hash=sha256(b"STOKENEXAMPLE").digest(),
    expires_at=NOW + timedelta(minutes=15),
)
PATH = "/api/v3/projects/0c97ac3cb280f4d91fa7c0096739e1f8/clusters"
CREDENTIALS = {
    "flat": SignatureCredential("flat", PERMANENT.id),
    "scoped": SignatureCredential("scoped", PERMANENT.id, "20260115///sdk_request"),
    "derived": SignatureCredential("derived", PERMANENT.id, "20260115/eu-de/cce"),
}
Headers = dict[str, str]


class OneKey:
    """An identity that knows one access key, and whose it is."""

    def __init__(self, key: SigningKey = PERMANENT) -> None:
        self.key = key

    def cached_signing_key(self, access_key_id: str) -> SigningKey | None:
        return None

    async def look_up_unknown(self, access_key_id: str) -> None:
        raise AssertionError(access_key_id)

    async def signing_key(self, access_key_id: str) -> SigningKey | None:
        return self.key if access_key_id == self.key.id else None

    async def caller_of_access_key(self, key: SigningKey, origin: Origin) -> Caller:
        if key.user_id != ALICE.id:
            raise Unauthenticated("the user is disabled")
        return Caller(ALICE, {}, "access_key", origin, expires_at=key.expires_at)


def signed_request(
    headers: Headers | None = None,
    *,
    unsigned: Headers | None = None,
    scheme: Scheme = "flat",
    method: str = "POST",
    query: str = "",
    body: bytes = b'{"duration": 30}',
    claimed_hash: str | None = None,
    secret: bytes = PERMANENT.secret,
) -> tuple[str, UnverifiedRequest]:
    """An Authorization value and the request that it signs; `unsigned` headers come on top."""
    named = {"host": "cce.example.test", "x-sdk-date": NOW.strftime(TIMESTAMP_FORMAT)} | (headers or {})
    signed = tuple(sorted((name.encode(), value.encode()) for name, value in named.items()))
    extra = tuple((name.encode(), value.encode()) for name, value in (unsigned or {}).items())
    parts = SignedParts(method, PATH, query, signed, claimed_hash or payload_hash(body))
    request = UnverifiedRequest(method, PATH, query, signed + extra, body, ORIGIN)
    return sign(parts, CREDENTIALS[scheme], secret), request


async def authenticate(
    signed: tuple[str, UnverifiedRequest], key: SigningKey = PERMANENT, now: datetime = NOW
) -> Caller:
    authorization, request = signed
    credential = UnverifiedCredential(authorization.partition(" ")[0], authorization)
    return await AccessKeyAuthenticator(OneKey(key), lambda: now).authenticate(credential, request)


async def refusal(
    signed: tuple[str, UnverifiedRequest], key: SigningKey = PERMANENT, now: datetime = NOW
) -> str:
    with pytest.raises(Unauthenticated) as refused:
        await authenticate(signed, key, now)
    assert refused.value.message == "Authorization failed."
    assert key.secret.decode() not in refused.value.reason
    return refused.value.reason


@pytest.mark.parametrize("scheme", ["flat", "scoped", "derived"])
async def test_a_signed_request_is_its_users_however_often_it_comes(scheme: Scheme) -> None:
    signed = signed_request(scheme=scheme, query="b=2&a=1")
    for _ in range(2):
        caller = await authenticate(signed)
        assert (caller.user, caller.method, caller.origin) == (ALICE, "access_key", ORIGIN)


async def test_what_clients_add_after_signing_does_not_matter() -> None:
    unsigned = {"accept": "*/*", "x-project-id": "another", "x-domain-id": "another", "x-security-token": ""}
    assert (await authenticate(signed_request(unsigned=unsigned))).user == ALICE


async def test_a_header_in_utf_8_is_signed_as_the_bytes_it_was_sent_in() -> None:
    assert (await authenticate(signed_request({"user-agent": "zoë/1"}))).user == ALICE


async def test_an_unknown_access_key_is_refused() -> None:
    assert "unknown" in await refusal(signed_request(), replace(PERMANENT, id="AKEXAMPLE00000000002"))


@pytest.mark.parametrize("scheme", ["flat", "scoped", "derived"])
async def test_another_secret_is_refused(scheme: Scheme) -> None:
    assert "does not match" in await refusal(signed_request(scheme=scheme, secret=b"guess"))


@pytest.mark.parametrize("scheme", ["flat", "scoped", "derived"])
async def test_an_address_that_is_slow_to_normalise_is_refused_first(scheme: Scheme) -> None:
    longest = "&".join("a" * 3 for _ in range((MAX_ADDRESS - len(PATH)) // 4))
    assert (await authenticate(signed_request(scheme=scheme, query=longest))).user == ALICE
    assert "longer than" in await refusal(signed_request(scheme=scheme, query=longest + "&a&a"))


async def test_the_dummy_secret_of_unknown_keys_opens_nothing() -> None:
    signed = signed_request(secret=bytes(40))
    assert "unknown" in await refusal(signed, replace(PERMANENT, id="AKEXAMPLE00000000002"))
    assert "does not match" in await refusal(signed)


async def test_a_disabled_user_is_refused_by_the_identity() -> None:
    assert await refusal(signed_request(), replace(PERMANENT, user_id="gone")) == "the user is disabled"


@pytest.mark.parametrize("minutes", [-15, 0, 15])
async def test_a_signature_of_up_to_15_minutes_away_passes(minutes: int) -> None:
    assert (await authenticate(signed_request(), now=NOW + timedelta(minutes=minutes))).user == ALICE


@pytest.mark.parametrize("seconds", [-901, 901, 86400])
async def test_a_signature_of_further_away_is_refused(seconds: int) -> None:
    assert "15 minutes" in await refusal(signed_request(), now=NOW + timedelta(seconds=seconds))


@pytest.mark.parametrize("date", ["20260115T103000", "2026-01-15T10:30:00Z", "20260132T103000Z", "", "é"])
async def test_a_malformed_date_is_refused(date: str) -> None:
    assert "X-Sdk-Date" in await refusal(signed_request({"x-sdk-date": date}))


@pytest.mark.parametrize("scheme", ["scoped", "derived"])
async def test_a_scope_of_another_day_than_the_date_is_refused(scheme: Scheme) -> None:
    midnight = {"x-sdk-date": "20260116T000100Z"}
    now = datetime(2026, 1, 16, tzinfo=UTC)
    assert "scope" in await refusal(signed_request(midnight, scheme=scheme), now=now)


async def test_an_unsigned_date_is_refused() -> None:
    date = (b"x-sdk-date", NOW.strftime(TIMESTAMP_FORMAT).encode())
    request = UnverifiedRequest("GET", PATH, "", ((b"host", b"x"), date), b"", ORIGIN)
    authorization = f"SDK-HMAC-SHA256 Access={PERMANENT.id}, SignedHeaders=host, Signature={'0' * 64}"
    assert "X-Sdk-Date" in await refusal((authorization, request))


@pytest.mark.parametrize("repeat", ["host", "x-sdk-date"])
async def test_a_signed_header_that_comes_twice_is_refused_even_if_equal(repeat: str) -> None:
    authorization, request = signed_request()
    again = next((name, value) for name, value in request.headers if name == repeat.encode())
    assert "exactly once" in await refusal(
        (authorization, replace(request, headers=(*request.headers, again)))
    )


async def test_a_signed_header_that_is_missing_is_refused() -> None:
    authorization, request = signed_request({"accept": "*/*"})
    rest = tuple(pair for pair in request.headers if pair[0] != b"accept")
    assert "exactly once" in await refusal((authorization, replace(request, headers=rest)))


@pytest.mark.parametrize(
    "change",
    [
        {"method": "PUT"},
        {"raw_path": PATH + "/x"},
        {"raw_query": "a=2"},
        {"raw_query": "a=1&b=1"},
        {"body": b'{"duration": 31}'},
        {"body": b""},
        {"headers": ((b"host", b"other.example.test"), (b"x-sdk-date", b"20260115T103000Z"))},
        {"headers": ((b"host", b"cce.example.test"), (b"x-sdk-date", b"20260115T103001Z"))},
    ],
    ids=str,
)
@pytest.mark.parametrize("scheme", ["flat", "scoped", "derived"])
async def test_a_request_changed_after_signing_is_refused(scheme: Scheme, change: dict[str, object]) -> None:
    authorization, request = signed_request(scheme=scheme, query="a=1")
    changed = replace(request, **change)  # type: ignore[arg-type]  # one field of any type at a time
    assert "does not match" in await refusal((authorization, changed))


@given(body=st.binary(max_size=64), scheme=st.sampled_from(["flat", "scoped", "derived"]))
async def test_any_body_is_covered_and_any_other_refused(body: bytes, scheme: Scheme) -> None:
    authorization, request = signed_request(scheme=scheme, body=body)
    assert (await authenticate((authorization, request))).user == ALICE
    await refusal((authorization, replace(request, body=body + b"\n")))


@pytest.mark.parametrize("place", ["signed", "unsigned"])
async def test_a_content_hash_passes_only_if_it_is_that_of_the_received_body(place: str) -> None:
    body = b'{"duration": 30}'

    def with_hash(claimed: str) -> tuple[str, UnverifiedRequest]:
        header = {"x-sdk-content-sha256": claimed}
        if place == "signed":
            return signed_request(header, body=body, claimed_hash=claimed)
        return signed_request(unsigned=header, body=body)

    assert (await authenticate(with_hash(payload_hash(body)))).user == ALICE
    for other in ("unsigned-payload", payload_hash(b""), payload_hash(body).upper()):
        assert "X-Sdk-Content-Sha256" in await refusal(with_hash(other))


async def test_the_vector_with_an_unsigned_payload_is_refused_by_name() -> None:
    vectors = json.loads(
        (Path(__file__).parents[1] / "vectors" / "signature_vectors.json").read_text(encoding="utf-8")
    )["vectors"]
    reasons = {}
    for vector in vectors:
        recorded = vector["request"]
        request = UnverifiedRequest(
            recorded["method"],
            recorded["path"],
            urlencode([tuple(pair) for pair in recorded["query"]]),
            tuple((name.lower().encode(), value.encode()) for name, value in recorded["headers"].items()),
            recorded["body"].encode(),
            ORIGIN,
        )
        key = replace(PERMANENT, secret=vector["secret_key"].encode())
        if "X-Security-Token" in recorded["headers"]:
            key = replace(key, security_token_hash=TEMPORARY.security_token_hash)
        try:
            assert (await authenticate((vector["authorization"], request), key)).user == ALICE
        except Unauthenticated as refused:
            reasons[vector["name"]] = refused.reason
    reason = "the signature does not cover the body: X-Sdk-Content-Sha256 is UNSIGNED-PAYLOAD"
    assert reasons == {"hw_unsigned_payload": reason}


def unsigned_payload(
    method: str = "GET",
    body: bytes = b"",
    unsigned: Headers | None = None,
    secret: bytes = PERMANENT.secret,
    scheme: Scheme = "flat",
) -> tuple[str, UnverifiedRequest]:
    """A request whose signed headers say that its signature does not cover the body."""
    claimed = "UNSIGNED-PAYLOAD"
    return signed_request(
        {"x-sdk-content-sha256": claimed},
        method=method,
        body=body,
        unsigned=unsigned,
        claimed_hash=claimed,
        secret=secret,
        scheme=scheme,
    )


@pytest.mark.parametrize("scheme", ["flat", "scoped", "derived"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_request_without_a_body_may_say_that_its_signature_covers_none(
    method: str, scheme: Scheme
) -> None:
    assert (await authenticate(unsigned_payload(method, scheme=scheme))).user == ALICE
    await refusal(unsigned_payload(method, scheme=scheme, secret=b"another"))
    authorization, request = unsigned_payload(method, scheme=scheme)
    other = "HEAD" if method == "GET" else "GET"
    await refusal((authorization, replace(request, method=other)))
    await refusal((authorization, replace(request, raw_query="dryRun=All")))


WITH_A_BODY: dict[str, tuple[str, bytes, Headers]] = {
    "a body": ("GET", b"{}", {}),
    "an announced body": ("GET", b"", {"content-length": "2"}),
    "an announced empty body": ("GET", b"", {"content-length": "0"}),
    "a chunked body": ("HEAD", b"", {"transfer-encoding": "chunked"}),
    "POST": ("POST", b'{"duration": 30}', {}),
    "POST without a body": ("POST", b"", {}),
    "DELETE": ("DELETE", b"", {}),
    "OPTIONS": ("OPTIONS", b"", {}),
    "a method in lower case": ("get", b"", {}),
}


@pytest.mark.parametrize("kind", WITH_A_BODY)
async def test_a_signature_that_does_not_cover_the_body_is_refused_by_name_and_without_the_key(
    kind: str,
) -> None:
    method, body, headers = WITH_A_BODY[kind]
    others = (replace(PERMANENT, id="AKOTHER"), replace(PERMANENT, secret=b"another"), PERMANENT)
    for key in others:
        with pytest.raises(UnsignedBody) as refused:
            await authenticate(unsigned_payload(method, body, headers), key)
        assert "UNSIGNED-PAYLOAD" in refused.value.message
        assert "SHA-256 of the body" in refused.value.message
        assert refused.value.known == ""


async def test_a_malformed_request_with_an_unsigned_payload_learns_nothing() -> None:
    authorization, request = unsigned_payload("POST", b"{}")
    hour = timedelta(hours=1)
    reasons = [
        await refusal((authorization, request), now=NOW + hour),
        await refusal((authorization, replace(request, headers=request.headers[1:]))),
        await refusal((authorization + "0", request)),
        # Not signed, so somebody else may have added it.
        await refusal(signed_request(unsigned={"x-sdk-content-sha256": "UNSIGNED-PAYLOAD"})),
        await refusal(
            signed_request(unsigned={"x-sdk-content-sha256": "UNSIGNED-PAYLOAD"}, method="GET", body=b"")
        ),
        await refusal(unsigned_payload("GET", unsigned={"x-sdk-content-sha256": "UNSIGNED-PAYLOAD"})),
        await refusal(unsigned_payload("GET", unsigned={"x-sdk-content-sha256": payload_hash(b"")})),
    ]
    assert not [each for each in reasons if "does not cover" in each]


@pytest.mark.parametrize("place", ["signed", "unsigned"])
async def test_a_temporary_key_passes_with_its_security_token(place: str) -> None:
    token = {"x-security-token": "STOKENEXAMPLE"}
    signed = signed_request(token) if place == "signed" else signed_request(unsigned=token)
    assert (await authenticate(signed, TEMPORARY)).expires_at == TEMPORARY.expires_at


@pytest.mark.parametrize("token", ["", "OTHER", "stokenexample", "STOKENEXAMPLE0"])
async def test_a_temporary_key_is_refused_with_any_other_security_token(token: str) -> None:
    assert "security token" in await refusal(signed_request(unsigned={"x-security-token": token}), TEMPORARY)


async def test_a_temporary_key_is_refused_without_a_security_token_or_with_two() -> None:
    assert "security token" in await refusal(signed_request(), TEMPORARY)
    authorization, request = signed_request(unsigned={"x-security-token": "STOKENEXAMPLE"})
    two = replace(request, headers=(*request.headers, (b"x-security-token", b"OTHER")))
    assert "security token" in await refusal((authorization, two), TEMPORARY)


async def test_a_permanent_key_is_refused_with_a_security_token() -> None:
    token = {"x-security-token": "STOKENEXAMPLE"}
    assert "permanent" in await refusal(signed_request(token))
    assert "permanent" in await refusal(signed_request(unsigned=token))


async def test_a_temporary_key_ends_when_it_says() -> None:
    signed = signed_request(unsigned={"x-security-token": "STOKENEXAMPLE"})
    end = NOW + timedelta(minutes=15)
    assert (await authenticate(signed, TEMPORARY, now=end - timedelta(seconds=1))).user == ALICE
    assert "expired" in await refusal(signed, TEMPORARY, now=end)


async def test_a_malformed_authorization_is_refused() -> None:
    _, request = signed_request()
    assert "three fields" in await refusal(("SDK-HMAC-SHA256 Access=AK", request))


def test_a_signing_key_does_not_print_its_secret() -> None:
    assert "SKEXAMPLE" not in repr(TEMPORARY)
    assert "token_hash" not in repr(TEMPORARY)


async def test_a_locked_access_key_gets_the_same_answer_even_for_a_right_signature() -> None:
    authenticator = AccessKeyAuthenticator(OneKey(), lambda: NOW)

    async def attempt(signed: tuple[str, UnverifiedRequest], address: str = ORIGIN.address) -> Caller:
        authorization, request = signed
        sent = replace(request, origin=Origin(address, ORIGIN.request_id))
        return await authenticator.authenticate(UnverifiedCredential("", authorization), sent)

    for _ in range(WRONG_SIGNATURES):
        with pytest.raises(Unauthenticated, match="Authorization failed"):
            await attempt(signed_request(secret=b"guess"))
    with pytest.raises(Unauthenticated, match="Authorization failed") as refused:
        await attempt(signed_request())
    assert "locked" in refused.value.reason
    assert (await attempt(signed_request(), "192.0.2.2")).user == ALICE
