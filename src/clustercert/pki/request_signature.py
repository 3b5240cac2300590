"""Parses, creates and verifies AK/SK request signatures, for client and service. Checks neither time nor permissions.

| scheme  | Authorization                                                  | key                            |
| ------- | -------------------------------------------------------------- | ------------------------------ |
| flat    | SDK-HMAC-SHA256 Access=AK                                      | SK                             |
| scoped  | SDK-HMAC-SHA256 Credential=AK/date/region/service/sdk_request  | HMACs of the scope by "SDK"+SK |
| derived | V11-HMAC-SHA256 Credential=AK/date/region/service              | hex of HKDF(SK, AK, scope)     |

Each Authorization header continues with `, SignedHeaders=a;b, Signature=hex`. The SDKs and the Terraform provider of
Huawei Cloud use the scheme flat or, if configured, derived. The SDKs and the Terraform provider of OTC use the scheme
scoped.
"""

import functools
import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Literal
from urllib.parse import quote, quote_from_bytes, unquote_to_bytes, urlencode

Scheme = Literal["flat", "scoped", "derived"]

ALGORITHMS: dict[Scheme, str] = {
    "flat": "SDK-HMAC-SHA256",
    "scoped": "SDK-HMAC-SHA256",
    "derived": "V11-HMAC-SHA256",
}
# Schemes by algorithm, presence of the field `Access`, and number of parts after the access key.
_FORMS: dict[tuple[str, bool, int], Scheme] = {
    (ALGORITHMS["flat"], True, 0): "flat",
    (ALGORITHMS["scoped"], False, 4): "scoped",
    (ALGORITHMS["derived"], False, 3): "derived",
}
TIMESTAMP_FORMAT = "%Y%m%dT%H%M%SZ"
"""The format of the X-Sdk-Date header, in UTC."""

MAX_SIGNED_HEADERS = 64
# Real headers have fewer than 400 characters. This limit leaves room for 64 signed headers with ordinary names.
MAX_AUTHORIZATION = 4096
MAX_LABEL = 64

_FIELDS = ({"Access", "SignedHeaders", "Signature"}, {"Credential", "SignedHeaders", "Signature"})
_EMPTY_HASH = hashlib.sha256(b"").hexdigest()
_LABEL = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
# RFC 9110 section 5.6.2, `token`, in lower case.
_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-.^_`|~")
_HEX = frozenset("0123456789abcdef")
# Matches paths that need no percent-encoding. RFC 3986 section 2.3.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9\-._~/]*")
_SIGNATURE_FIELD = "Signature="
_SIGNATURE_DIGITS = hashlib.sha256().digest_size * 2
# Longer Authorization headers and paths are not cached.
_CACHED_AUTHORIZATION = 512
_CACHED_PATH = 256
_TIMESTAMP = re.compile(r"[0-9]{8}T[0-9]{6}Z")


class BadSignature(Exception):
    """A signature is malformed. The message is for the log, and contains no secrets."""


@dataclass(frozen=True, slots=True)
class SignatureCredential:
    """The scheme, access key id (AK) and scope of a signature.

    Attributes:
        scope: the part after the AK, see the module's docstring; empty in the scheme flat. The date is YYYYMMDD. OTC
            clients leave region and service empty.
    """

    scheme: Scheme
    access_key_id: str
    scope: str = ""

    @property
    def date(self) -> str:
        return self.scope.partition("/")[0]


@dataclass(frozen=True, slots=True)
class UnverifiedSignature:
    """A parsed Authorization header, before the signature is verified.

    Attributes:
        signed_headers: lower-case names without duplicates, in the client's order.
        signature: 64 lower-case hex digits.
    """

    credential: SignatureCredential
    signed_headers: tuple[str, ...]
    signature: str


@dataclass(frozen=True, slots=True)
class SignedParts:
    """The parts of a request that a signature covers.

    Attributes:
        method: upper case.
        raw_path: percent-encoded, without the query.
        raw_query: percent-encoded, without the question mark.
        headers: lower-case names and values in the order of SignedHeaders. Raw bytes, because some clients send UTF-8.
        payload_hash: see `payload_hash`. `UNSIGNED-PAYLOAD` if the signature does not cover the body.
    """

    method: str
    raw_path: str
    raw_query: str
    headers: tuple[tuple[bytes, bytes], ...]
    payload_hash: str

    @property
    def timestamp(self) -> str:
        """The value of X-Sdk-Date. Raises BadSignature if X-Sdk-Date is not signed."""
        for name, value in self.headers:
            if name == b"x-sdk-date":
                return value.strip().decode("ascii", "replace")
        raise BadSignature("X-Sdk-Date is not among the signed headers")


def payload_hash(body: bytes) -> str:
    """Return the SHA-256 of a body, in lower-case hex."""
    return hashlib.sha256(body).hexdigest()


# Cached, because requests in the same second have the same date. Errors are not cached.
@functools.lru_cache(maxsize=1024)
def parse_timestamp(text: str) -> datetime:
    """Parse an X-Sdk-Date of the form YYYYMMDDTHHMMSSZ. Raises BadSignature."""
    # Check first, because `fromisoformat` also accepts other formats, and `strptime` accepts "1" for "01".
    if not _TIMESTAMP.fullmatch(text):
        raise BadSignature("X-Sdk-Date does not have the form YYYYMMDDTHHMMSSZ")
    try:
        return datetime.fromisoformat(text)
    except ValueError as e:
        raise BadSignature("X-Sdk-Date is not a valid date") from e


def parse_authorization(text: str) -> UnverifiedSignature:
    """Parse an Authorization header of one of the three schemes. Raises BadSignature."""
    if len(text) > MAX_AUTHORIZATION:
        raise BadSignature("the Authorization header is too long")
    # A client's Authorization headers differ only in the signature, so the rest is parsed once and cached.
    before, field, after = text.partition(_SIGNATURE_FIELD)
    signature, suffix = after[:_SIGNATURE_DIGITS], after[_SIGNATURE_DIGITS:]
    parse = _parse_unsigned_cached if len(text) <= _CACHED_AUTHORIZATION else _parse_unsigned
    credential, names = parse(f"{before}{field}{suffix}")
    if len(signature) != _SIGNATURE_DIGITS or not _HEX.issuperset(signature):
        raise BadSignature("the signature does not have 64 lower-case hex digits")
    return UnverifiedSignature(credential, names, signature)


def _parse_unsigned(unsigned: str) -> tuple[SignatureCredential, tuple[str, ...]]:
    """Parse an Authorization header from which the signature was removed. Raises BadSignature."""
    algorithm, _, rest = unsigned.partition(" ")
    pairs = [field.strip(" ").partition("=") for field in rest.split(",", 3)]
    fields = {name: value for name, _, value in pairs}
    if len(pairs) != len(fields) or fields.keys() not in _FIELDS:
        raise BadSignature("the Authorization header does not have exactly three fields")
    names = tuple(fields["SignedHeaders"].split(";"))
    if len(names) > MAX_SIGNED_HEADERS or len(set(names)) != len(names):
        raise BadSignature("SignedHeaders has too many names or a duplicate")
    if not all(name and _NAME.issuperset(name) for name in names):
        raise BadSignature("SignedHeaders is not a list of lower-case header names")
    if fields["Signature"]:
        raise BadSignature("the signature does not have 64 lower-case hex digits")
    return _parse_credential(algorithm, fields), names


# `lru_cache` does not cache errors.
_parse_unsigned_cached = functools.lru_cache(maxsize=1024)(_parse_unsigned)


def _parse_credential(algorithm: str, fields: dict[str, str]) -> SignatureCredential:
    access_key_id, *scope = fields.get("Access", fields.get("Credential", "")).split("/")
    scheme = _FORMS.get((algorithm, "Access" in fields, len(scope)))
    if scheme is None or not access_key_id or (scheme == "scoped" and scope[3] != "sdk_request"):
        raise BadSignature("the credential does not match the algorithm")
    if not all(len(label) <= MAX_LABEL and _LABEL.issuperset(label) for label in (access_key_id, *scope)):
        raise BadSignature("the credential has invalid characters, or is too long")
    return SignatureCredential(scheme, access_key_id, "/".join(scope))


def sign(parts: SignedParts, credential: SignatureCredential, secret: bytes) -> str:
    """Sign a request. Returns the Authorization header. Raises BadSignature if X-Sdk-Date is not in `parts.headers`."""
    canonical = next(canonical_requests(parts, credential.scheme))
    signature = _signature(canonical, parts.timestamp, credential, _signing_key(credential, secret))
    label = "Access" if credential.scheme == "flat" else "Credential"
    scope = credential.scope and f"/{credential.scope}"
    names = b";".join(name for name, _ in parts.headers).decode("ascii")
    owner = f"{label}={credential.access_key_id}{scope}"
    return f"{ALGORITHMS[credential.scheme]} {owner}, SignedHeaders={names}, Signature={signature}"


def verify(unverified: UnverifiedSignature, parts: SignedParts, secret: bytes) -> bool:
    """Whether the signature matches the parts and the secret. Checks neither the time nor the payload hash.

    Raises BadSignature if X-Sdk-Date is not among the signed headers.
    """
    credential = unverified.credential
    key, timestamp = _signing_key(credential, secret), parts.timestamp
    for canonical in canonical_requests(parts, credential.scheme):
        if hmac.compare_digest(unverified.signature, _signature(canonical, timestamp, credential, key)):
            return True
    return False


def canonical_requests(parts: SignedParts, scheme: Scheme) -> Iterator[bytes]:
    """Yield the possible canonical requests: two if clients of this scheme canonicalize the request in two ways."""
    path = (_canonical_path_cached if len(parts.raw_path) <= _CACHED_PATH else _canonical_path)(
        parts.raw_path
    )
    # The Go SDK of OTC also collapses white space inside a value.
    headers = [
        (name, b" ".join(value.split()) if scheme == "scoped" else value.strip())
        for name, value in parts.headers
    ]
    lines = b"".join([b"%b:%b\n" % header for header in headers])
    names = [name for name, _ in headers]
    start = f"{parts.method}\n{path}\n".encode()
    queries: Iterable[tuple[str, str]] = (("", parts.payload_hash),)
    if parts.raw_query:
        queries = _scoped_queries(parts) if scheme == "scoped" else _flat_queries(parts)
    for query, payload in queries:
        yield b"%b%b\n%b\n%b\n%b" % (start, query.encode(), lines, b";".join(names), payload.encode())


def _canonical_path(raw_path: str) -> str:
    path = raw_path
    if not _PLAIN_PATH.fullmatch(path):
        path = quote_from_bytes(unquote_to_bytes(path), safe="/")
    return path if path.endswith("/") else f"{path}/"


# Cached, because most requests are about the same few clusters.
_canonical_path_cached = functools.lru_cache(maxsize=1024)(_canonical_path)


def _flat_queries(parts: SignedParts) -> Iterator[tuple[str, str]]:
    # The Go signer sorts the values of a repeated key as strings. The Python SDK sorts the values as numbers, 9 before
    # 10, and sends them in this order. So try sorted values first, and then the order of the received query.
    pairs = _query_pairs(parts.raw_query)
    by_text = sorted(pairs)
    yield _query_string(by_text), parts.payload_hash
    as_sent = sorted(pairs, key=itemgetter(0))
    if as_sent != by_text:
        yield _query_string(as_sent), parts.payload_hash


def _scoped_queries(parts: SignedParts) -> Iterator[tuple[str, str]]:
    # Keys are sorted case-insensitively. Only the first value of a repeated key is signed.
    pairs = _query_pairs(parts.raw_query)
    if parts.method == "POST" and parts.payload_hash == _EMPTY_HASH and pairs:
        # For a POST without a body, the signed payload is the query, form-encoded and with all values.
        yield "", payload_hash(urlencode(sorted(pairs, key=itemgetter(0))).encode())
    first: dict[bytes, bytes] = {}
    for key, value in pairs:
        first.setdefault(key, value)
    by_key = sorted(first.items(), key=lambda pair: quote_from_bytes(pair[0], safe="").lower())
    yield _query_string(by_key), parts.payload_hash


def _query_pairs(raw_query: str) -> list[tuple[bytes, bytes]]:
    split = (part.partition("=") for part in raw_query.replace("+", " ").split("&") if part)
    return [(unquote_to_bytes(key), unquote_to_bytes(value)) for key, _, value in split]


def _query_string(pairs: list[tuple[bytes, bytes]]) -> str:
    return urlencode(pairs, quote_via=quote)


def _signature(canonical: bytes, timestamp: str, credential: SignatureCredential, key: bytes) -> str:
    scope = credential.scope and f"{credential.scope}\n"
    string_to_sign = f"{ALGORITHMS[credential.scheme]}\n{timestamp}\n{scope}{payload_hash(canonical)}"
    return hmac.digest(key, string_to_sign.encode(), "sha256").hex()


def _signing_key(credential: SignatureCredential, secret: bytes) -> bytes:
    if credential.scheme == "flat":
        return secret
    if credential.scheme == "scoped":
        key = b"SDK" + secret
        for step in credential.scope.split("/"):
            key = hmac.digest(key, step.encode(), "sha256")
        return key
    # RFC 5869 with one block of output: extract, then expand.
    extracted = hmac.digest(credential.access_key_id.encode(), secret, "sha256")
    return hmac.digest(extracted, credential.scope.encode() + b"\x01", "sha256").hex().encode()
