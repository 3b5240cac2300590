"""The arithmetic of AK/SK signatures, for either end; no clock, no store, no verdict on who may call.

| scheme  | Authorization                                                  | key                            |
| ------- | -------------------------------------------------------------- | ------------------------------ |
| flat    | SDK-HMAC-SHA256 Access=AK                                      | SK                             |
| scoped  | SDK-HMAC-SHA256 Credential=AK/date/region/service/sdk_request  | HMACs of the scope by "SDK"+SK |
| derived | V11-HMAC-SHA256 Credential=AK/date/region/service              | hex of HKDF(SK, AK, scope)     |

Each header goes on with `, SignedHeaders=a;b, Signature=hex`. Flat is what the SDKs and the Terraform
provider of Huawei Cloud send, derived where they are asked to; scoped is what those of OTC send.
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
from urllib.parse import quote_from_bytes, unquote_to_bytes

Scheme = Literal["flat", "scoped", "derived"]

ALGORITHMS: dict[Scheme, str] = {
    "flat": "SDK-HMAC-SHA256",
    "scoped": "SDK-HMAC-SHA256",
    "derived": "V11-HMAC-SHA256",
}
TIMESTAMP_FORMAT = "%Y%m%dT%H%M%SZ"
"""Of the X-Sdk-Date header, in UTC."""

MAX_SIGNED_HEADERS = 64
# Real ones are under 400 characters; this leaves room for 64 signed headers of ordinary names.
MAX_AUTHORIZATION = 4096
MAX_LABEL = 64

_FIELDS = ({"Access", "SignedHeaders", "Signature"}, {"Credential", "SignedHeaders", "Signature"})
_EMPTY_HASH = hashlib.sha256(b"").hexdigest()
_LABEL = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
# RFC 9110 section 5.6.2, `token`, in lower case.
_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-.^_`|~")
_HEX = frozenset("0123456789abcdef")
# What stands for itself in a canonical path. RFC 3986 2.3.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9\-._~/]*")
_SIGNATURE_FIELD = "Signature="
_SIGNATURE_DIGITS = hashlib.sha256().digest_size * 2
# Characters of an Authorization header and of a path that are worth remembering.
_USUAL_AUTHORIZATION = 512
_USUAL_PATH = 256
_TIMESTAMP_LENGTH = len("20260115T103000Z")


class BadSignature(Exception):
    """What claims to be a signature has not the form of one. The message is for the log, without secrets."""


@dataclass(frozen=True, slots=True)
class Credential:
    """Whose signature, and by which scheme.

    Attributes:
        access_key_id: the AK.
        date: YYYYMMDD; it and the next two are empty in the flat scheme.
        region, service: as the client names them; the OTC clients leave them empty.
    """

    scheme: Scheme
    access_key_id: str
    date: str = ""
    region: str = ""
    service: str = ""

    @property
    def scope(self) -> str:
        """The scope as it is signed; empty in the flat scheme."""
        if self.scheme == "flat":
            return ""
        scope = f"{self.date}/{self.region}/{self.service}"
        return f"{scope}/sdk_request" if self.scheme == "scoped" else scope


@dataclass(frozen=True, slots=True)
class UnverifiedSignature:
    """An Authorization header, parsed and bounded, not checked.

    Attributes:
        signed_headers: lower-case names, each once, in the order that the client signed them.
        signature: 64 lower-case hex digits.
    """

    credential: Credential
    signed_headers: tuple[str, ...]
    signature: str


@dataclass(frozen=True, slots=True)
class SignedParts:
    """What a signature covers.

    Attributes:
        method: upper case.
        raw_path: percent-encoded, without the query.
        raw_query: percent-encoded, without the question mark.
        headers: lower-case name and value in the order of SignedHeaders, which clients sort; the bytes of the
            wire, since some send UTF-8.
        payload_hash: see `payload_hash`.
    """

    method: str
    raw_path: str
    raw_query: str
    headers: tuple[tuple[bytes, bytes], ...]
    payload_hash: str

    @property
    def timestamp(self) -> str:
        """The text of X-Sdk-Date, which must be among the signed headers."""
        for name, value in self.headers:
            if name == b"x-sdk-date":
                return value.strip().decode("ascii", "replace")
        raise BadSignature("X-Sdk-Date is not among the signed headers")


def payload_hash(body: bytes) -> str:
    """Hash a body as signatures have it: lower-case hex of SHA-256."""
    return hashlib.sha256(body).hexdigest()


# Those of a second are few, however many ask. What is refused isn't kept.
@functools.lru_cache(maxsize=1024)
def parse_timestamp(text: str) -> datetime:
    """Read an X-Sdk-Date.

    Raises:
        BadSignature: it is not of the form YYYYMMDDTHHMMSSZ.
    """
    # `fromisoformat` alone would take other forms; `strptime` takes "1" for "01" and costs ten times as much.
    digits = text[:8] + text[9:15]
    if (
        len(text) != _TIMESTAMP_LENGTH
        or text[8] + text[15] != "TZ"
        or not (digits.isascii() and digits.isdigit())
    ):
        raise BadSignature("X-Sdk-Date is not of the form YYYYMMDDTHHMMSSZ")
    try:
        return datetime.fromisoformat(text)
    except ValueError as e:
        raise BadSignature("X-Sdk-Date is no date of the calendar") from e


def parse_authorization(text: str) -> UnverifiedSignature:
    """Read an Authorization header of any of the three schemes.

    Raises:
        BadSignature: anything else, however slightly.
    """
    if len(text) > MAX_AUTHORIZATION:
        raise BadSignature("the Authorization header is too long")
    # The same client's headers differ in their signatures alone.
    before, field, after = text.partition(_SIGNATURE_FIELD)
    signature, behind = after[:_SIGNATURE_DIGITS], after[_SIGNATURE_DIGITS:]
    declare = _known_declaration if len(text) <= _USUAL_AUTHORIZATION else _declaration
    credential, names = declare(f"{before}{field}{behind}")
    if len(signature) != _SIGNATURE_DIGITS or not _HEX.issuperset(signature):
        raise BadSignature("the signature is not of 64 lower-case hex digits")
    return UnverifiedSignature(credential, names, signature)


def _declaration(unsigned: str) -> tuple[Credential, tuple[str, ...]]:
    """What an Authorization header says, its signature cut out. Raises BadSignature."""
    algorithm, _, rest = unsigned.partition(" ")
    pairs = [field.strip(" ").partition("=") for field in rest.split(",", 3)]
    fields = {name: value for name, _, value in pairs}
    if len(pairs) != len(fields) or fields.keys() not in _FIELDS:
        raise BadSignature("the Authorization header does not have its three fields, each once")
    names = tuple(fields["SignedHeaders"].split(";"))
    if len(names) > MAX_SIGNED_HEADERS or len(set(names)) != len(names):
        raise BadSignature("SignedHeaders has too many names, or one twice")
    if not all(name and _NAME.issuperset(name) for name in names):
        raise BadSignature("SignedHeaders is not a list of lower-case header names")
    if fields["Signature"]:
        raise BadSignature("the signature is not of 64 lower-case hex digits")
    return _credential(algorithm, fields), names


# What is refused isn't kept.
_known_declaration = functools.lru_cache(maxsize=1024)(_declaration)


def _credential(algorithm: str, fields: dict[str, str]) -> Credential:
    access_key_id, *scope = fields.get("Access", fields.get("Credential", "")).split("/")
    form = (algorithm, "Access" in fields, len(scope))
    credential: Credential | None = None
    if form == (ALGORITHMS["flat"], True, 0):
        credential = Credential("flat", access_key_id)
    elif form == (ALGORITHMS["scoped"], False, 4) and scope[3] == "sdk_request":
        credential = Credential("scoped", access_key_id, *scope[:3])
    elif form == (ALGORITHMS["derived"], False, 3):
        credential = Credential("derived", access_key_id, *scope)
    if credential is None or not access_key_id:
        raise BadSignature("the credential has not the form of its algorithm")
    if not all(len(label) <= MAX_LABEL and _LABEL.issuperset(label) for label in (access_key_id, *scope)):
        raise BadSignature("the credential has characters that no access key, region or service has")
    return credential


def sign(parts: SignedParts, credential: Credential, secret: bytes) -> str:
    """Make the value of the Authorization header for a request.

    Raises:
        BadSignature: `parts` has no X-Sdk-Date.
    """
    canonical = next(canonical_requests(parts, credential.scheme))
    signature = _signature(canonical, parts.timestamp, credential, _signing_key(credential, secret))
    label = "Access" if credential.scheme == "flat" else "Credential"
    scope = credential.scope and f"/{credential.scope}"
    names = b";".join(name for name, _ in parts.headers).decode("ascii")
    owner = f"{label}={credential.access_key_id}{scope}"
    return f"{ALGORITHMS[credential.scheme]} {owner}, SignedHeaders={names}, Signature={signature}"


def verify(unverified: UnverifiedSignature, parts: SignedParts, secret: bytes) -> bool:
    """Whether the signature was made with this secret over these parts; says nothing of time or payload.

    Raises:
        BadSignature: X-Sdk-Date is not among the signed headers.
    """
    credential = unverified.credential
    key, timestamp = _signing_key(credential, secret), parts.timestamp
    for canonical in canonical_requests(parts, credential.scheme):
        if hmac.compare_digest(unverified.signature, _signature(canonical, timestamp, credential, key)):
            return True
    return False


def canonical_requests(parts: SignedParts, scheme: Scheme) -> Iterator[bytes]:
    """Yield the canonical request: one, or each of two where the scheme's clients don't agree."""
    path = (_known_path if len(parts.raw_path) <= _USUAL_PATH else _canonical_path)(parts.raw_path)
    # The Go SDK of OTC collapses the white space inside a value; all trim it.
    headers = [
        (name, b" ".join(value.split()) if scheme == "scoped" else value.strip())
        for name, value in parts.headers
    ]
    lines = b"".join([b"%b:%b\n" % header for header in headers])
    names = [name for name, _ in headers]
    start = f"{parts.method}\n{path}\n".encode()
    queries: Iterable[tuple[str, str]]
    if not parts.raw_query:
        queries = (("", parts.payload_hash),)
    else:
        queries = _scoped_queries(parts) if scheme == "scoped" else _flat_queries(parts)
    for query, payload in queries:
        yield b"%b%b\n%b\n%b\n%b" % (start, query.encode(), lines, b";".join(names), payload.encode())


def _canonical_path(raw_path: str) -> str:
    path = raw_path
    if not _PLAIN_PATH.fullmatch(path):
        path = quote_from_bytes(unquote_to_bytes(path), safe="/")
    return path if path.endswith("/") else f"{path}/"


# Clients ask again and again for the same few clusters.
_known_path = functools.lru_cache(maxsize=1024)(_canonical_path)


def _flat_queries(parts: SignedParts) -> Iterator[tuple[str, str]]:
    # The Go signer sorts the values of a repeated key as text. The Python SDK sorts them as what they are, 9
    # before 10, and sends them in that order; so the order of the wire is the second choice.
    pairs = _pairs(parts.raw_query)
    by_text = sorted(pairs)
    yield _joined(by_text), parts.payload_hash
    as_sent = sorted(pairs, key=itemgetter(0))
    if as_sent != by_text:
        yield _joined(as_sent), parts.payload_hash


def _scoped_queries(parts: SignedParts) -> Iterator[tuple[str, str]]:
    # Keys are sorted without regard to case, and of a repeated key only the first value is signed.
    pairs = _pairs(parts.raw_query)
    if parts.method == "POST" and parts.payload_hash == _EMPTY_HASH and pairs:
        # A POST without a body has its query as payload, in the form encoding and with every value.
        form = "&".join(f"{_form(key)}={_form(value)}" for key, value in sorted(pairs, key=itemgetter(0)))
        yield "", payload_hash(form.encode())
    first: dict[bytes, bytes] = {}
    for key, value in pairs:
        first.setdefault(key, value)
    yield _joined(sorted(first.items(), key=lambda pair: _quoted(pair[0]).lower())), parts.payload_hash


def _pairs(raw_query: str) -> list[tuple[bytes, bytes]]:
    split = (piece.partition("=") for piece in raw_query.replace("+", " ").split("&") if piece)
    return [(unquote_to_bytes(key), unquote_to_bytes(value)) for key, _, value in split]


def _joined(pairs: list[tuple[bytes, bytes]]) -> str:
    return "&".join(f"{_quoted(key)}={_quoted(value)}" for key, value in pairs)


def _quoted(text: bytes) -> str:
    return quote_from_bytes(text, safe="")


def _form(text: bytes) -> str:
    return quote_from_bytes(text, safe=" ").replace(" ", "+")


def _signature(canonical: bytes, timestamp: str, credential: Credential, key: bytes) -> str:
    scope = credential.scope and f"{credential.scope}\n"
    string_to_sign = f"{ALGORITHMS[credential.scheme]}\n{timestamp}\n{scope}{payload_hash(canonical)}"
    return hmac.digest(key, string_to_sign.encode(), "sha256").hex()


def _signing_key(credential: Credential, secret: bytes) -> bytes:
    if credential.scheme == "flat":
        return secret
    if credential.scheme == "scoped":
        key = b"SDK" + secret
        for step in (credential.date, credential.region, credential.service, "sdk_request"):
            key = hmac.digest(key, step.encode(), "sha256")
        return key
    # RFC 5869 with one block of output: extract, then expand.
    extracted = hmac.digest(credential.access_key_id.encode(), secret, "sha256")
    return hmac.digest(extracted, credential.scope.encode() + b"\x01", "sha256").hex().encode()
