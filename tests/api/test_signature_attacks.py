"""Attacks on signed requests: each changes one thing of a request that is accepted as it was signed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

import httpx2
import pytest

from clustercert.pki.request_signature import SignatureCredential, SignedParts, payload_hash, sign
from support import world as worlds
from support.service import Service, exchange, scope_of
from support.stores import rows
from support.world import World

BODY = b'{"duration": 1}'
PREVIEW = "dryRun=All"
Pair = tuple[bytes, bytes]


@dataclass(frozen=True)
class Sent:
    """A request as it arrives. `path` is percent-encoded."""

    path: str
    headers: tuple[Pair, ...]
    method: str = "POST"
    query: str = ""
    body: bytes = BODY

    def header(self, name: bytes) -> bytes:
        return dict(self.headers)[name]

    def with_header(self, name: bytes, value: bytes) -> "Sent":
        return replace(self, headers=(*self.without(name).headers, (name, value)))

    def without(self, name: bytes) -> "Sent":
        return replace(self, headers=tuple(pair for pair in self.headers if pair[0] != name))

    def again(self, name: bytes, value: bytes) -> "Sent":
        return replace(self, headers=(*self.headers, (name, value)))

    def authorized(self, old: bytes, new: bytes) -> "Sent":
        """Change the Authorization header."""
        authorization = self.header(b"authorization")
        assert old in authorization
        return self.with_header(b"authorization", authorization.replace(old, new))


@dataclass(frozen=True)
class Signer:
    """The admin's access key, and a service that nobody else uses."""

    service: Service
    world: World

    def signed(
        self, scope: str | None = None, secret: bytes | None = None, late: int = 0, query: str = ""
    ) -> Sent:
        """Sign a POST for a certificate in the flat scheme, or for a scope in the derived scheme."""
        date = (datetime.now(UTC) + timedelta(seconds=late)).strftime("%Y%m%dT%H%M%SZ")
        access, own_secret = self.world.access_key
        credential = SignatureCredential("flat", access)
        if scope is not None:
            credential = SignatureCredential("derived", access, f"{date[:8]}/{scope}")
        headers = (
            (b"content-type", b"application/json"),
            (b"host", b"clustercert.test"),
            (b"x-project-id", self.world.project.id.encode()),
            (b"x-sdk-date", date.encode()),
        )
        parts = SignedParts("POST", self.world.path(), query, headers, payload_hash(BODY))
        authorization = sign(parts, credential, own_secret.encode() if secret is None else secret)
        return Sent(self.world.path(), (*headers, (b"authorization", authorization.encode())), query=query)

    def send(self, sent: Sent) -> httpx2.Response:
        scope = scope_of(sent.method, unquote(sent.path), sent.headers, sent.query)
        scope["raw_path"] = sent.path.encode()
        return self.service.run(exchange(self.service.app, scope, [sent.body]))

    def certificates(self) -> object:
        return rows(self.world.database, "SELECT count(*) FROM certificate")[0][0]


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signer]:
    world = worlds.make(tmp_path_factory.mktemp("signature-attacks"))
    with Service(world.settings()).running() as service:
        yield Signer(service, world)


Attack = Callable[[Signer, Sent], Sent]


def as_scoped(signer: Signer, sent: Sent) -> Sent:
    """Present a flat signature as one of the scoped scheme."""
    day = sent.header(b"x-sdk-date")[:8]
    access = signer.world.access_key[0].encode()
    return sent.authorized(b"Access=" + access, b"Credential=" + access + b"/" + day + b"///sdk_request")


def as_derived(signer: Signer, sent: Sent) -> Sent:
    """Present a flat signature as one of the derived scheme."""
    day = sent.header(b"x-sdk-date")[:8]
    access = signer.world.access_key[0].encode()
    return sent.authorized(
        b"SDK-HMAC-SHA256 Access=" + access,
        b"V11-HMAC-SHA256 Credential=" + access + b"/" + day + b"/eu-de/cce",
    )


def of_derived(signer: Signer, sent: Sent) -> Sent:
    """Present a signature for one region and service as one for another."""
    return signer.signed(scope="eu-de/cce").authorized(b"/eu-de/cce", b"/eu-nl/cce")


def upper_signature(signer: Signer, sent: Sent) -> Sent:
    head, _, signature = sent.header(b"authorization").rpartition(b"=")
    return sent.with_header(b"authorization", head + b"=" + signature.upper())


def other_cluster(signer: Signer, sent: Sent) -> Sent:
    return replace(sent, path=signer.world.path("eip"))


def token_too(signer: Signer, sent: Sent) -> Sent:
    return sent.again(b"x-auth-token", signer.world.people["admin"].token.encode())


ATTACKS: dict[str, Attack] = {
    "a flat signature as a scoped one": as_scoped,
    "a flat signature as a derived one": as_derived,
    "a derived signature for another region": of_derived,
    "another algorithm": lambda _, sent: sent.authorized(b"SDK-HMAC-SHA256", b"SDK-HMAC-SM3"),
    "no algorithm": lambda _, sent: sent.authorized(b"SDK-HMAC-SHA256", b"none"),
    "an empty secret key": lambda signer, _: signer.signed(secret=b""),
    "a signature in capitals": upper_signature,
    "header names in capitals": lambda _, sent: sent.authorized(b"host;", b"Host;"),
    "a header left out of the list": lambda _, sent: sent.authorized(b"x-project-id;", b""),
    "the date left out of the list": lambda _, sent: sent.authorized(b";x-sdk-date", b""),
    "a header named twice in the list": lambda _, sent: sent.authorized(b"host;", b"host;host;"),
    "a signed header removed": lambda _, sent: sent.without(b"x-project-id"),
    "a signed header changed": lambda _, sent: sent.with_header(b"x-project-id", b"0" * 32),
    "a signed header twice": lambda _, sent: sent.again(b"x-project-id", b"0" * 32),
    "a second date": lambda _, sent: sent.again(b"x-sdk-date", sent.header(b"x-sdk-date")),
    "a later date": lambda _, sent: sent.with_header(b"x-sdk-date", b"20991231T235959Z"),
    "a request from 16 minutes ago": lambda signer, _: signer.signed(late=-960),
    "a request from in 16 minutes": lambda signer, _: signer.signed(late=960),
    "another body": lambda _, sent: replace(sent, body=b'{"duration": 2}'),
    "the same JSON in other bytes": lambda _, sent: replace(sent, body=b'{"duration":1}'),
    "no body hash": lambda _, sent: sent.again(b"x-sdk-content-sha256", b"UNSIGNED-PAYLOAD"),
    "another method": lambda _, sent: replace(sent, method="GET"),
    "another cluster": other_cluster,
    "a preview sent as a request": lambda signer, _: replace(signer.signed(query=PREVIEW), query=""),
    "a query parameter added": lambda _, sent: replace(sent, query="x=1"),
    "a key id in other case": lambda signer, sent: sent.authorized(
        signer.world.access_key[0].encode(), signer.world.access_key[0].swapcase().encode()
    ),
    "a look-alike in the key id": lambda signer, sent: sent.authorized(
        signer.world.access_key[0].encode(), "\u0410".encode() + signer.world.access_key[0].encode()[1:]
    ),
    "a security token for a permanent key": lambda _, sent: sent.again(b"x-security-token", b"A" * 64),
    "a token beside the signature": token_too,
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_signed_request_with_one_change_is_the_same_401(signer: Signer, attack: str) -> None:
    accepted = signer.signed()
    assert signer.send(accepted).status_code == 200
    before = signer.certificates()
    refused = signer.send(ATTACKS[attack](signer, accepted))
    unknown = signer.send(accepted.with_header(b"authorization", b"Bearer " + b"A" * 43))
    assert (refused.status_code, refused.json()["errorCode"]) == (401, "CCE.01401001")
    assert refused.json() | {"request_id": ""} == unknown.json() | {"request_id": ""}
    assert signer.certificates() == before


@pytest.mark.parametrize(
    ("written", "status"),
    [("/%63lustercert", 200), ("%2Fclustercert", 200), ("%252Fclustercert", 405), ("/%2563lustercert", 404)],
)
def test_a_signature_and_the_router_read_an_encoded_path_alike(
    signer: Signer, written: str, status: int
) -> None:
    """Both decode it once, so a signature never reaches an operation other than the signed one."""
    accepted, before = signer.signed(), int(str(signer.certificates()))
    path = accepted.path.replace("/clustercert", written)
    assert path != accepted.path
    assert signer.send(replace(accepted, path=path)).status_code == status
    assert signer.certificates() == before + (status == 200)


def test_a_repeated_query_parameter_of_a_signed_request_is_refused(signer: Signer) -> None:
    sent, before = signer.signed(query=PREVIEW), signer.certificates()
    assert signer.send(sent).status_code == 200
    for query in (f"{PREVIEW}&dryRun=", f"dryRun=&{PREVIEW}", f"{PREVIEW}&dry%52un=x"):
        refused = signer.send(replace(sent, query=query))
        assert (refused.status_code, refused.json()["errorCode"]) == (400, "CCE.01400001")
    assert signer.certificates() == before
