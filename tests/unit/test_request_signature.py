import json
import re
from datetime import UTC, datetime
from hashlib import sha256
from hmac import digest
from pathlib import Path
from urllib.parse import quote, unquote, urlencode

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import example, given
from hypothesis import strategies as st

from clustercert.pki.request_signature import (
    MAX_SIGNED_HEADERS,
    BadSignature,
    Scheme,
    SignatureCredential,
    SignedParts,
    UnverifiedSignature,
    canonical_requests,
    parse_authorization,
    parse_timestamp,
    payload_hash,
    sign,
    verify,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "signature_vectors.json").read_text())[
    "vectors"
]
DATE = "20260115T103000Z"
SECRET = b"SKEXAMPLE000000000000000000000000000001"
HEX = "0123456789abcdef" * 4
CREDENTIALS = {
    "flat": SignatureCredential("flat", "AKEXAMPLE00000000001"),
    "scoped": SignatureCredential("scoped", "AKEXAMPLE00000000001", "20260115///sdk_request"),
    "derived": SignatureCredential("derived", "AKEXAMPLE00000000001", "20260115/eu-de/cce"),
}


def parts(
    method: str = "GET",
    raw_path: str = "/v3/projects",
    raw_query: str = "",
    headers: tuple[tuple[str, str], ...] = (),
    body: bytes = b"",
) -> SignedParts:
    named = tuple(sorted({"x-sdk-date": DATE, **dict(headers)}.items()))
    encoded = tuple((name.encode(), value.encode()) for name, value in named)
    return SignedParts(method, raw_path, raw_query, encoded, payload_hash(body))


def canonical_lines(signed: SignedParts, scheme: Scheme) -> list[list[str]]:
    return [canonical.decode().split("\n") for canonical in canonical_requests(signed, scheme)]


def vector_parts(vector: dict[str, object]) -> tuple[UnverifiedSignature, SignedParts]:
    request = vector["request"]
    assert isinstance(request, dict)
    unverified = parse_authorization(str(vector["authorization"]))
    headers = {name.lower(): value for name, value in request["headers"].items()}
    signed = SignedParts(
        method=request["method"],
        raw_path=request["path"],
        raw_query=urlencode([tuple(pair) for pair in request["query"]]),
        headers=tuple((name.encode(), headers[name].encode()) for name in unverified.signed_headers),
        payload_hash=headers.get("x-sdk-content-sha256", payload_hash(request["body"].encode())),
    )
    return unverified, signed


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_every_vector_of_a_real_signer_is_reproduced_and_verified(vector: dict[str, object]) -> None:
    unverified, signed = vector_parts(vector)
    secret = str(vector["secret_key"]).encode()
    canonical = next(canonical_requests(signed, unverified.credential.scheme))
    assert canonical.decode() == vector["canonical_request"]
    assert sign(signed, unverified.credential, secret) == vector["authorization"]
    assert verify(unverified, signed, secret)
    assert not verify(unverified, signed, secret + b"0")


def test_the_vectors_cover_all_three_schemes() -> None:
    schemes = {parse_authorization(vector["authorization"]).credential.scheme for vector in VECTORS}
    assert schemes == {"flat", "scoped", "derived"}


# The same rules once more, as the vendors' documents tell them: text, percent-decoding, one step a line.


def documented_canonical_request(
    method: str,
    path: str,
    query: list[tuple[str, str]],
    headers: dict[str, str],
    body: bytes,
    scheme: Scheme,
) -> str:
    if scheme == "scoped":
        first = dict(reversed(query))
        query = sorted(first.items(), key=lambda pair: quote(pair[0], safe="~").lower())
        headers = {name: re.sub(r"\s+", " ", value, flags=re.ASCII) for name, value in headers.items()}
    else:
        query = sorted(query)
    segments = [quote(segment, safe="~") for segment in unquote(path).split("/")]
    names = sorted(headers)
    return (
        method
        + "\n"
        + "/".join(segments).removesuffix("/")
        + "/\n"
        + "&".join(quote(key, safe="~") + "=" + quote(value, safe="~") for key, value in query)
        + "\n"
        + "".join(name + ":" + headers[name].strip() + "\n" for name in names)
        + "\n"
        + ";".join(names)
        + "\n"
        + sha256(body).hexdigest()
    )


def documented_signature(canonical_request: str, credential: SignatureCredential) -> str:
    hashed = sha256(canonical_request.encode()).hexdigest()
    date, region, service = [*credential.scope.split("/"), "", ""][:3]
    if credential.scheme == "flat":
        return digest(SECRET, f"SDK-HMAC-SHA256\n{DATE}\n{hashed}".encode(), "sha256").hex()
    if credential.scheme == "scoped":
        key = digest(b"SDK" + SECRET, date.encode(), "sha256")
        key = digest(key, region.encode(), "sha256")
        key = digest(key, service.encode(), "sha256")
        key = digest(key, b"sdk_request", "sha256")
        scope = f"{date}/{region}/{service}/sdk_request"
        return digest(key, f"SDK-HMAC-SHA256\n{DATE}\n{scope}\n{hashed}".encode(), "sha256").hex()
    info = f"{date}/{region}/{service}"
    derived = HKDF(SHA256(), 32, salt=credential.access_key_id.encode(), info=info.encode()).derive(SECRET)
    string_to_sign = f"V11-HMAC-SHA256\n{DATE}\n{info}\n{hashed}"
    return digest(derived.hex().encode(), string_to_sign.encode(), "sha256").hex()


text = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8)
segment = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/"), min_size=1, max_size=8
)
# A scoped client takes keys that differ in case alone in an order of chance: nothing to agree on.
key = st.text(st.characters(exclude_categories=("Cs", "Cc", "Lu", "Lt")), max_size=6).map(str.lower)
value = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0x24F, exclude_categories=["Cc"]), max_size=12
)
name = st.sampled_from(["accept", "content-type", "host", "user-agent", "x-project-id", "x-security-token"])


@given(
    scheme=st.sampled_from(["flat", "scoped", "derived"]),
    method=st.sampled_from(["GET", "POST", "HEAD", "DELETE"]),
    segments=st.lists(segment, min_size=1, max_size=4),
    query=st.lists(st.tuples(key, text), max_size=4),
    headers=st.dictionaries(name, value.map(lambda v: v.strip("\u00a0\u0085")), max_size=6),
    body=st.binary(max_size=32),
)
@example("flat", "GET", ["a b", "100%", "é~-._"], [("b", "2"), ("a", "1"), ("a", "0"), ("", "")], {}, b"")
@example("scoped", "GET", ["x"], [("b", "2"), ("a", "1"), ("a", "0")], {"accept": "a  b\t c"}, b"")
@example("flat", "POST", ["x"], [("é", "ü + &="), ("~", "/")], {"user-agent": "naïve  agent"}, b"{}\n")
def test_what_the_documented_rules_sign_verifies(
    scheme: Scheme,
    method: str,
    segments: list[str],
    query: list[tuple[str, str]],
    headers: dict[str, str],
    body: bytes,
) -> None:
    if scheme == "scoped" and method == "POST":
        body = body or b"{}"  # without a body its query is signed otherwise: a test of its own below
    path = "/" + "/".join(quote(segment, safe="") for segment in segments)
    headers = {name: value.strip() for name, value in headers.items()} | {"x-sdk-date": DATE}
    signed = parts(method, path, urlencode(query), tuple(headers.items()), body)
    documented = documented_canonical_request(method, path, query, headers, body, scheme)
    credential = CREDENTIALS[scheme]
    assert documented.encode() in canonical_requests(signed, scheme)
    unverified = UnverifiedSignature(
        credential, tuple(sorted(headers)), documented_signature(documented, credential)
    )
    assert verify(unverified, signed, SECRET)
    assert parse_authorization(sign(signed, credential, SECRET)) == unverified


@given(
    scheme=st.sampled_from(["flat", "scoped", "derived"]),
    mutation=st.sampled_from(
        ["method", "raw_path", "raw_query", "header", "payload_hash", "order", "signature"]
    ),
    query=st.dictionaries(key, text, min_size=1, max_size=3),
    body=st.binary(min_size=1, max_size=16),
)
def test_any_change_of_a_signed_part_is_noticed(
    scheme: Scheme, mutation: str, query: dict[str, str], body: bytes
) -> None:
    headers = (("host", "cce.example.test"), ("x-project-id", "0c97ac3cb280f4d91fa7c0096739e1f8"))
    signed = parts("POST", "/v1/x", urlencode(query), headers, body)
    unverified = parse_authorization(sign(signed, CREDENTIALS[scheme], SECRET))
    assert verify(unverified, signed, SECRET)
    changed = {
        "method": ("PUT", signed.raw_path, signed.raw_query, signed.headers, signed.payload_hash),
        "raw_path": ("POST", "/v1/y", signed.raw_query, signed.headers, signed.payload_hash),
        "raw_query": (
            "POST",
            signed.raw_path,
            signed.raw_query + "&zzzzzzz=1",
            signed.headers,
            signed.payload_hash,
        ),
        "header": (
            "POST",
            "/v1/x",
            signed.raw_query,
            ((b"host", b"x"), *signed.headers[1:]),
            signed.payload_hash,
        ),
        "payload_hash": ("POST", "/v1/x", signed.raw_query, signed.headers, payload_hash(body + b"\n")),
        "order": ("POST", "/v1/x", signed.raw_query, signed.headers[::-1], signed.payload_hash),
    }
    if mutation == "signature":
        forged = UnverifiedSignature(unverified.credential, unverified.signed_headers, HEX)
        assert not verify(forged, signed, SECRET)
    else:
        assert not verify(unverified, SignedParts(*changed[mutation]), SECRET)


@pytest.mark.parametrize(
    ("raw_path", "canonical"),
    [
        ("/v3/projects", "/v3/projects/"),
        ("/v3/projects/", "/v3/projects/"),
        ("", "/"),
        ("/", "/"),
        ("/a%7Eb/c%2fd", "/a~b/c/d/"),
        ("/a b/%e9%C3%A9", "/a%20b/%E9%C3%A9/"),
        ("/100%", "/100%25/"),
        ("/a+b:c@d", "/a%2Bb%3Ac%40d/"),
        ("//api/v3", "//api/v3/"),
    ],
)
def test_a_canonical_path_is_normalized_and_ends_with_a_slash(raw_path: str, canonical: str) -> None:
    assert [lines[1] for lines in canonical_lines(parts(raw_path=raw_path), "flat")] == [canonical]
    assert [lines[1] for lines in canonical_lines(parts(raw_path=raw_path), "scoped")] == [canonical]


@pytest.mark.parametrize(
    ("scheme", "raw_query", "canonical"),
    [
        ("flat", "", [""]),
        ("flat", "b=2&a=1", ["a=1&b=2"]),
        ("flat", "B=2&a=1", ["B=2&a=1"]),
        ("flat", "a=+&b=%20&c=%2B", ["a=%20&b=%20&c=%2B"]),
        ("flat", "a&b=&&=c", ["=c&a=&b="]),
        ("flat", "a=9&a=10", ["a=10&a=9", "a=9&a=10"]),
        ("derived", "a=9&a=10", ["a=10&a=9", "a=9&a=10"]),
        ("scoped", "B=2&a=1&a=0", ["a=1&B=2"]),
        ("scoped", "a=%7e&a%20b=1", ["a=~&a%20b=1"]),
    ],
)
def test_canonical_queries_match_all_clients_of_a_scheme(
    scheme: Scheme, raw_query: str, canonical: list[str]
) -> None:
    assert [lines[2] for lines in canonical_lines(parts(raw_query=raw_query), scheme)] == canonical


def test_a_scoped_post_without_body_signs_its_query_as_payload_or_query() -> None:
    as_payload, as_query = canonical_lines(parts("POST", raw_query="b=2&a=x+y&a=%7E"), "scoped")
    assert (as_payload[2], as_payload[-1]) == ("", sha256(b"a=x+y&a=~&b=2").hexdigest())
    assert (as_query[2], as_query[-1]) == ("a=x%20y&b=2", sha256(b"").hexdigest())
    for signed in (parts("GET", raw_query="a=1"), parts("POST"), parts("POST", raw_query="a=1", body=b"{}")):
        assert len(canonical_lines(signed, "scoped")) == 1


def test_only_the_scoped_scheme_collapses_header_white_space() -> None:
    signed = parts(headers=(("accept", " a  b\tc "),))
    assert [lines[3] for lines in canonical_lines(signed, "flat")] == ["accept:a  b\tc"]
    assert [lines[3] for lines in canonical_lines(signed, "scoped")] == ["accept:a b c"]


def test_a_signature_without_a_signed_date_is_refused() -> None:
    signed = SignedParts("GET", "/", "", ((b"host", b"x"),), payload_hash(b""))
    with pytest.raises(BadSignature, match="X-Sdk-Date"):
        sign(signed, CREDENTIALS["flat"], SECRET)
    with pytest.raises(BadSignature, match="X-Sdk-Date"):
        verify(UnverifiedSignature(CREDENTIALS["flat"], ("host",), HEX), signed, SECRET)


def test_authorization_fields_may_have_any_order_and_spacing() -> None:
    expected = UnverifiedSignature(CREDENTIALS["derived"], ("host", "x-sdk-date"), HEX)
    credential = "Credential=AKEXAMPLE00000000001/20260115/eu-de/cce"
    for fields in (
        f"{credential}, SignedHeaders=host;x-sdk-date, Signature={HEX}",
        f"Signature={HEX},SignedHeaders=host;x-sdk-date,   {credential} ",
    ):
        assert parse_authorization(f"V11-HMAC-SHA256 {fields}") == expected


FLAT = "SDK-HMAC-SHA256 Access=AK, SignedHeaders=host;x-sdk-date, Signature="


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "SDK-HMAC-SHA256",
        "Bearer token",
        FLAT,
        FLAT + HEX.upper(),
        FLAT + HEX[:-1],
        FLAT + HEX + "0",
        FLAT + HEX + ", Signature=" + HEX,
        FLAT + HEX + ", Other=1",
        FLAT + "é" * 64,
        f"SDK-HMAC-SHA256 Access=AK, Signature={HEX}",
        f"SDK-HMAC-SHA256 Access=, SignedHeaders=x-sdk-date, Signature={HEX}",
        f"SDK-HMAC-SHA256 Access=A K, SignedHeaders=x-sdk-date, Signature={HEX}",
        f"SDK-HMAC-SHA256 Access=AK/20260115///sdk_request, SignedHeaders=x-sdk-date, Signature={HEX}",
        f"SDK-HMAC-SHA256 Credential=AK, SignedHeaders=x-sdk-date, Signature={HEX}",
        f"SDK-HMAC-SHA256 Credential=AK/20260115/eu-de/cce, SignedHeaders=x-sdk-date, Signature={HEX}",
        f"SDK-HMAC-SHA256 Credential=AK/20260115///aws4_request, SignedHeaders=x-sdk-date, Signature={HEX}",
        f"SDK-HMAC-SHA256 Access=AK, Credential=AK/20260115///sdk_request, Signature={HEX}",
        f"V11-HMAC-SHA256 Access=AK, SignedHeaders=x-sdk-date, Signature={HEX}",
        f"V11-HMAC-SHA256 Credential=AK/20260115///sdk_request, SignedHeaders=x-sdk-date, Signature={HEX}",
        f"SDK-HMAC-SM3 Access=AK, SignedHeaders=x-sdk-date, Signature={HEX}",
        f"sdk-hmac-sha256 Access=AK, SignedHeaders=x-sdk-date, Signature={HEX}",
        f"SDK-HMAC-SHA256 Access={'A' * 65}, SignedHeaders=x-sdk-date, Signature={HEX}",
        f"SDK-HMAC-SHA256 Access=AK, SignedHeaders=, Signature={HEX}",
        f"SDK-HMAC-SHA256 Access=AK, SignedHeaders=host;;x-sdk-date, Signature={HEX}",
        f"SDK-HMAC-SHA256 Access=AK, SignedHeaders=host;host;x-sdk-date, Signature={HEX}",
        f"SDK-HMAC-SHA256 Access=AK, SignedHeaders=Host;x-sdk-date, Signature={HEX}",
        f"SDK-HMAC-SHA256 Access=AK, SignedHeaders=ho st;x-sdk-date, Signature={HEX}",
        f"SDK-HMAC-SHA256 Access=AK, SignedHeaders={'a' * 4096}, Signature={HEX}",
    ],
)
def test_an_authorization_of_any_other_form_is_refused(authorization: str) -> None:
    with pytest.raises(BadSignature):
        parse_authorization(authorization)


@pytest.mark.parametrize(("count", "accepted"), [(MAX_SIGNED_HEADERS, True), (MAX_SIGNED_HEADERS + 1, False)])
def test_the_number_of_signed_headers_is_bounded(count: int, accepted: bool) -> None:
    names = ";".join(f"x-{n}" for n in range(count))
    authorization = f"SDK-HMAC-SHA256 Access=AK, SignedHeaders={names}, Signature={HEX}"
    if accepted:
        assert len(parse_authorization(authorization).signed_headers) == count
    else:
        with pytest.raises(BadSignature, match="too many"):
            parse_authorization(authorization)


@given(st.text(max_size=200) | st.text("SDKHMAC-SHA256 Access=Credntil,SigedHrs;/0af", max_size=300))
def test_no_authorization_makes_the_parser_fail_otherwise(authorization: str) -> None:
    for candidate in (authorization, "SDK-HMAC-SHA256 " + authorization):
        with pytest.raises(BadSignature):
            parse_authorization(candidate)


def test_a_timestamp_is_read_as_utc() -> None:
    assert parse_timestamp(DATE) == datetime(2026, 1, 15, 10, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    "timestamp",
    [
        "",
        "20260115T103000",
        "2026-01-15T10:30:00Z",
        "20260115t103000z",
        "20260115T103000z",
        "20260115 103000Z",
        "20261315T103000Z",
        "20260230T103000Z",
        "20260115T103060Z",
        " 0260115T103000Z",
        "+0260115T103000Z",
        "\u0662\u0660\u0662\u0666\u0660\u0661\u0661\u0665T103000Z",
        "20260115T103000Z0",
        "2026W031T103000Z",
    ],
)
def test_a_timestamp_of_any_other_form_is_refused(timestamp: str) -> None:
    with pytest.raises(BadSignature, match="X-Sdk-Date"):
        parse_timestamp(timestamp)


@given(st.binary(max_size=200))
@example(b"k" * 64)
@example(b"k" * 65)
def test_signatures_match_the_librarys_hmac_for_any_secret_length(secret: bytes) -> None:
    signed = parts(headers=(("x-sdk-date", DATE),))
    (canonical,) = canonical_requests(signed, "flat")
    to_sign = f"SDK-HMAC-SHA256\n{DATE}\n{sha256(canonical).hexdigest()}".encode()
    authorization = sign(signed, CREDENTIALS["flat"], secret)
    assert authorization.endswith(f"Signature={digest(secret, to_sign, 'sha256').hex()}")
